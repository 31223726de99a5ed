"""Plots of a data set as Vega-Lite specifications; their colours are the page's style sheet's, in light and dark."""

from __future__ import annotations

from typing import Any

import altair as alt

from cprfl.report.data_set.labels import SPLITS, LabelFacts

GROUP_COLOURS = {"head": "var(--head)", "medium": "var(--medium)", "tail": "var(--tail)"}
SPLIT_COLOURS = {"train": "var(--train)", "val": "var(--val)", "test": "var(--test)"}
_NAMED = 120  # classes whose names stand below their bars, as many of them as there is room for


def long_tail(labels: LabelFacts, split: str) -> dict[str, Any]:
    """Images of a split that show each class, the class with the most training images first, on shades of its group."""
    rows = [
        {"class": found.name, "group": found.group, "images": found.images[split]}
        | {f"images in {name}": found.images[name] for name in SPLITS if labels.images[name]}
        for found in labels.classes
    ]
    names = [found.name for found in labels.classes]
    axis = alt.Axis(labels=len(names) <= _NAMED, labelAngle=-90, labelLimit=90, labelOverlap=True, ticks=False)
    scale = alt.Scale(domain=list(GROUP_COLOURS), range=list(GROUP_COLOURS.values()))
    others = [alt.Tooltip(f"images in {name}:Q", format=",d") for name in SPLITS if labels.images[name]]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("class:N", sort=names, title=None, axis=axis, scale=alt.Scale(padding=0)),
        color=alt.Color("group:N", scale=scale, legend=None),
        tooltip=[alt.Tooltip("class:N"), alt.Tooltip("group:N"), *others],
    )
    shades = base.mark_rect(opacity=0.12)
    bars = base.mark_bar(width=alt.RelativeBandSize(0.85)).encode(
        y=alt.Y("images:Q", title=None, axis=alt.Axis(tickCount=4, format=",d"))
    )
    return whole(alt.layer(shades, bars), height=170)


def labels_per_image(labels: LabelFacts) -> dict[str, Any]:
    """Share of each split's images that have 0, 1, 2, ... labels."""
    splits = [name for name in SPLITS if labels.images[name]]
    rows = [
        {"labels": number, "split": name, "images": count, "share": count / labels.images[name]}
        for name in splits
        for number, count in enumerate(labels.labels_per_image[name])
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("labels:O", title=None, axis=alt.Axis(labelAngle=0, labelOverlap=True, ticks=False)),
            xOffset=alt.XOffset("split:N", sort=splits),
            y=alt.Y("share:Q", title=None, axis=alt.Axis(format="%", tickCount=4)),
            color=alt.Color(
                "split:N",
                scale=alt.Scale(domain=splits, range=[SPLIT_COLOURS[name] for name in splits]),
                legend=None,
            ),
            tooltip=[
                alt.Tooltip("labels:O", title="labels per image"),
                alt.Tooltip("split:N"),
                alt.Tooltip("images:Q", format=",d"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    return whole(chart, height=170)


def together(labels: LabelFacts) -> dict[str, Any]:
    """Share of a row's training images that show the column too, of the most frequent classes."""
    names = [found.name for found in labels.classes[: len(labels.shares_CC)]]
    counts = [found.images["train"] for found in labels.classes]
    rows = [
        {"class": first, "with": second, "share": round(share, 4), "images": round(share * counts[row])}
        for row, first in enumerate(names)
        for column, second in enumerate(names)
        if row != column and (share := float(labels.shares_CC[row, column])) > 0
    ]
    axis = alt.Axis(labelLimit=90, ticks=False, labelOverlap=True)
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect(fill="var(--train)")
        .encode(
            x=alt.X("with:N", scale=alt.Scale(domain=names), title=None, axis=axis),
            y=alt.Y("class:N", scale=alt.Scale(domain=names), title=None, axis=axis),
            opacity=alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]), legend=None),
            tooltip=[
                alt.Tooltip("class:N"),
                alt.Tooltip("with:N"),
                alt.Tooltip("images:Q", title="images with both", format=",d"),
                alt.Tooltip("share:Q", title="of the class's images", format=".1%"),
            ],
        )
    )
    return whole(chart, height=max(120, 17 * len(names)))


def whole(chart: Any, height: int) -> dict[str, Any]:
    """The specification of a plot, as wide as its place; without the address of its schema, which nothing reads."""
    specification: dict[str, Any] = chart.properties(
        width="container", height=height, background="transparent"
    ).to_dict()
    del specification["$schema"]
    specification["config"] = _CONFIG
    return specification


_CONFIG = {
    "font": "system-ui, sans-serif",  # measured on a canvas, which knows no inheritance
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "domainColor": "var(--line)",
        "gridColor": "var(--line)",
        "labelFontSize": 11,
        "titleColor": "var(--soft)",
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "grid": False,
    },
    "axisY": {"domain": False, "ticks": False},
    "axisQuantitative": {"grid": True},
}
