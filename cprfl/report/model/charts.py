"""Plots of a trained model as Vega-Lite specifications.

Those of one class are written once, without data: the page puts each class's numbers in when its section is opened.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from cprfl.data.manifest import Groups
from cprfl.evaluation.intervals import Interval
from cprfl.report.charts import GROUP_COLOURS, whole
from cprfl.report.checks.base import MODEL
from cprfl.report.model.class_facts import BINS, ClassFacts
from cprfl.report.model.names_in_plot import GAP, LONGEST, named
from cprfl.report.model.report import ModelReport

_SMALL, _HIGH = 150, 320  # pixels of the height of a class's plot, and of that of the long tail
_NAMED = 4  # classes whose names stand in the plot of the long tail


def comparison(report: ModelReport) -> dict[str, Any]:
    """mAP of the model and those that it is compared with, for each group, with 95 % intervals."""
    models = list(report.intervals.models)
    rows = []
    for group in report.intervals.groups:
        for model in models:
            found = report.intervals.mean(model, group)
            if found is not None:
                rows.append({"group": group, "model": model, "mAP": found.value, "low": found.low, "high": found.high})
    colours = ["var(--accent)", *(f"var(--baseline-{number % 3})" for number in range(len(models) - 1))]
    shapes = ["circle", "square", "triangle-up", "diamond", "cross"]
    scale = alt.Scale(domain=models, range=colours)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y(
            "group:N",
            sort=list(report.intervals.groups),
            title=None,
            axis=alt.Axis(ticks=False, labelFontSize=13, labelPadding=10),
            scale=alt.Scale(paddingInner=0.25),
        ),
        yOffset=alt.YOffset("model:N", sort=models),
        color=alt.Color("model:N", scale=scale, legend=None),
        tooltip=[
            alt.Tooltip("model:N"),
            alt.Tooltip("group:N"),
            alt.Tooltip("mAP:Q", format=".1f"),
            alt.Tooltip("low:Q", title="from", format=".1f"),
            alt.Tooltip("high:Q", title="to", format=".1f"),
        ],
    )
    domain = alt.Scale(zero=False, nice=True)
    bars = base.mark_rule(strokeWidth=2, strokeCap="round").encode(
        x=alt.X("low:Q", title=None, scale=domain, axis=alt.Axis(tickCount=6)), x2="high:Q"
    )
    points = base.mark_point(filled=True, opacity=1, size=70).encode(
        x=alt.X("mAP:Q", scale=domain),
        shape=alt.Shape("model:N", scale=alt.Scale(domain=models, range=shapes[: len(models)]), legend=None),
    )
    return whole(alt.layer(bars, points), height=len(report.intervals.groups) * (14 * len(models) + 18))


def long_tail(report: ModelReport) -> dict[str, Any]:
    """AP of each class against its training images, on shades of the groups; a class is a link to its section."""
    intervals = report.intervals.classes(MODEL)
    found = [(facts, intervals[facts.label]) for facts in report.classes if facts.ap is not None]
    rows = [_point(facts, interval) for facts, interval in found]
    fewest, most = (pick((row["images"] for row in rows), default=1) for pick in (min, max))
    low, high = fewest * 0.8, most * 1.2
    x = alt.X(
        "images:Q",
        title="training images",
        scale=alt.Scale(type="log" if fewest else "symlog", domain=[low, high], nice=False),
        axis=alt.Axis(format=",d", values=_ticks(low, high), grid=False),
    )
    sides = named(rows, (low, high), _HIGH, _NAMED)
    for row in rows:
        row["name"] = sides.get(row["label"], "")
    y = alt.Y("AP:Q", title="AP, %", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5))
    colour = alt.Color("group:N", scale=_group_scale(), legend=None)
    classes = alt.Chart(alt.InlineData(values=rows)).encode(x=x)
    layers = [
        _shades(report.results.manifest.groups, low, high).encode(y=alt.value(0), y2=alt.value("height")),
        classes.mark_rule(opacity=0.3).encode(y=alt.Y("low:Q"), y2="high:Q", color=colour),
        classes.mark_point(filled=True, opacity=0.9, size=64, cursor="pointer").encode(
            y=y,
            color=colour,
            tooltip=[
                alt.Tooltip("class:N"),
                alt.Tooltip("group:N"),
                alt.Tooltip("AP:Q", format=".1f"),
                alt.Tooltip("low:Q", title="from", format=".1f"),
                alt.Tooltip("high:Q", title="to", format=".1f"),
                alt.Tooltip("images:Q", title="training images", format=",d"),
                alt.Tooltip("test images:Q", format=",d"),
            ],
        ),
        *(
            classes.transform_filter(f"datum.name === '{side}'")
            .mark_text(
                align="left" if side == "right" else "right",
                dx=GAP if side == "right" else -GAP,
                fontSize=11,
                limit=LONGEST,
                fill="var(--ink)",
                cursor="pointer",
            )
            .encode(y=y, text="class:N")
            for side in ("left", "right")
        ),
    ]
    return whole(alt.layer(*layers), height=_HIGH)


def _point(facts: ClassFacts, interval: Interval | None) -> dict[str, Any]:
    assert facts.ap is not None
    low, high = (interval.low, interval.high) if interval else (facts.ap, facts.ap)
    return {
        "label": facts.label, "class": facts.name, "group": facts.group, "images": facts.training_images,
        "test images": facts.test_images, "AP": round(facts.ap, 2), "low": round(low, 2), "high": round(high, 2),
    }  # fmt: skip


def _shades(thresholds: Groups, low: float, high: float) -> Any:
    edges = {
        "tail": (low, thresholds.tail),
        "medium": (thresholds.tail, thresholds.head),
        "head": (thresholds.head, high),
    }
    rows = [
        {"group": name, "images": max(start, low), "to": min(end, high)}
        for name, (start, end) in edges.items()
        if start < high and end > low
    ]
    return (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect(opacity=0.09, tooltip=False)
        .encode(x=alt.X("images:Q"), x2="to:Q", color=alt.Color("group:N", scale=_group_scale(), legend=None))
    )


def _group_scale() -> Any:
    return alt.Scale(domain=list(GROUP_COLOURS), range=list(GROUP_COLOURS.values()))


def _ticks(low: float, high: float) -> list[int]:
    steps = [0, *(step * 10**power for power in range(8) for step in (1, 2, 5))]
    return [step for step in steps if low <= step <= high]


def group_reliability(bins: list[dict[str, float | int]]) -> dict[str, Any]:
    """A group's reliability, as those of the classes are drawn."""
    specification = reliability()
    specification["datasets"] = {**specification.get("datasets", {}), "bins": bins}
    return specification


def precision_recall() -> dict[str, Any]:
    """Precision against recall (data ``curve``), and where the threshold stands (``chosen``)."""
    axis = alt.Axis(format="%", tickCount=4)
    x = alt.X("recall:Q", title="recall", scale=alt.Scale(domain=[0, 1]), axis=axis)
    y = alt.Y("precision:Q", title="precision", scale=alt.Scale(domain=[0, 1]), axis=axis)
    tooltip = [alt.Tooltip("precision:Q", format=".1%"), alt.Tooltip("recall:Q", format=".1%")]
    curve = alt.Chart(alt.NamedData("curve")).encode(x=x, y=y)
    return whole(
        alt.layer(
            curve.mark_area(interpolate="step-before", fill="var(--accent)", opacity=0.12, tooltip=False),
            curve.mark_line(interpolate="step-before", stroke="var(--accent)", strokeWidth=2, tooltip=False),
            curve.mark_point(filled=True, size=60, opacity=0).encode(tooltip=tooltip),
            alt.Chart(alt.NamedData("chosen"))
            .mark_point(filled=True, size=110, opacity=1, fill="var(--mark)", stroke="var(--paper)", strokeWidth=2)
            .encode(x=x, y=y, tooltip=[alt.Tooltip("threshold:Q", format=".3f"), *tooltip]),
        ),
        height=_SMALL,
    )


def scores() -> dict[str, Any]:
    """Probabilities of the images that show the class, upwards, and of the others, downwards (data ``bins``).

    Each is drawn to the scale of its own fullest bin. ``chosen`` has the threshold.
    """
    x = alt.X("from:Q", title="probability", scale=alt.Scale(domain=[0, 1], nice=False), axis=alt.Axis(tickCount=5))
    y = alt.Y("height:Q", title=None, axis=None, scale=alt.Scale(domain=[-1, 1]))
    bins = alt.Chart(alt.NamedData("bins")).encode(x=x, x2="to:Q")
    colour = alt.Color(
        "which:N",
        scale=alt.Scale(domain=["show it", "do not"], range=["var(--accent)", "var(--quiet)"]),
        legend=None,
    )
    return whole(
        alt.layer(
            bins.mark_bar(binSpacing=1).encode(
                y=y,
                y2=alt.datum(0),
                color=colour,
                tooltip=[
                    alt.Tooltip("which:N", title="images that"),
                    alt.Tooltip("share:Q", format=".1%"),
                    alt.Tooltip("from:Q", format=".2f"),
                    alt.Tooltip("to:Q", format=".2f"),
                ],
            ),
            alt.Chart(alt.NamedData("chosen"))
            .mark_rule(stroke="var(--mark)", strokeWidth=2)
            .encode(x="threshold:Q", tooltip=[alt.Tooltip("threshold:Q", format=".3f")]),
        ),
        height=_SMALL,
    )


def reliability() -> dict[str, Any]:
    """How often it is so, against what was said (data ``bins``), beside the line of those that are the same."""
    axis = alt.Axis(format="%", tickCount=4)
    x = alt.X("probability:Q", title="probability", scale=alt.Scale(domain=[0, 1]), axis=axis)
    y = alt.Y("right:Q", title="are so", scale=alt.Scale(domain=[0, 1]), axis=axis)
    bins = alt.Chart(alt.NamedData("bins")).encode(x=x, y=y)
    corners = alt.InlineData(values=[{"probability": 0, "right": 0}, {"probability": 1, "right": 1}])
    return whole(
        alt.layer(
            alt.Chart(corners)
            .mark_line(stroke="var(--quiet)", strokeDash=[4, 4], strokeWidth=1.5, tooltip=False)
            .encode(x=x, y=y),
            bins.mark_line(stroke="var(--accent)", strokeWidth=2, tooltip=False),
            bins.mark_point(filled=True, fill="var(--accent)", opacity=1).encode(
                size=alt.Size("count:Q", scale=alt.Scale(type="log", range=[20, 110]), legend=None),
                tooltip=[
                    alt.Tooltip("count:Q", title="images", format=",d"),
                    alt.Tooltip("probability:Q", title="mean probability", format=".1%"),
                    alt.Tooltip("right:Q", title="show it", format=".1%"),
                ],
            ),
        ),
        height=_SMALL,
    )


def class_columns(facts: ClassFacts) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The numbers of a class's plots, by plot and data set, in columns: a row of words for each would be far longer."""
    edges = np.linspace(0, 1, BINS + 1)
    rows = [
        (which, edges[number], edges[number + 1], share, sign * share / max(shares.max(), 1e-9))
        for which, shares, sign in (("show it", facts.shown_B, 1), ("do not", facts.other_B, -1))
        for number, share in enumerate(shares)
        if share > 0
    ]
    names = ("which", "from", "to", "share", "height")
    bins = {name: [_short(row[place]) for row in rows] for place, name in enumerate(names)}
    threshold = {"threshold": [_short(facts.chosen.threshold)]}
    precision, recall = facts.chosen.precision, facts.chosen.recall
    at = threshold | {"precision": [_short(precision)], "recall": [_short(recall)]}
    return {
        "precision-recall": {
            "curve": {
                "recall": [0, *map(_short, facts.recall_P)],
                "precision": [*map(_short, facts.precision_P[:1]), *map(_short, facts.precision_P)] or [0],
            },
            "chosen": at if precision is not None and recall is not None else {},
        },
        "scores": {"bins": bins, "chosen": threshold},
        "reliability": {
            "bins": {
                name: [_short(row[name]) for row in facts.reliability] for name in ("probability", "right", "count")
            }
        },
    }


def _short(value: Any) -> Any:
    return value if isinstance(value, str) or value is None else round(float(value), 4)
