"""Models side by side as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from cprfl.evaluation.intervals import Interval
from cprfl.report import page
from cprfl.report.charts import GROUP_COLOURS, whole
from cprfl.report.checks.base import FEW
from cprfl.report.comparing.compare import Compared, Gain
from cprfl.words import percent

_EACH_END = 60  # classes of the plot, the most gained and the most lost
_IMAGES = 24  # on which the models disagree
_TOP = 5  # scores of an image
_ROW = 16  # pixels of a class in the plot


@dataclass(frozen=True)
class Scored:
    """A class of an image, what a model says of it, and whether it is there (`None` where nobody knows)."""

    class_name: str
    said: str
    true: bool | None


@dataclass(frozen=True)
class Disagreement:
    """An image on which models disagree.

    Attributes:
        image_id: of the image.
        uri: of the image.
        labels: what it shows.
        scores: the highest of each model, by its name.
        closest: the model whose probabilities are nearest to what is true (least squares).
    """

    image_id: str
    uri: str
    labels: tuple[str, ...]
    scores: dict[str, list[Scored]]
    closest: str


def write_page(compared: Compared, path: Path) -> None:
    """Write the page: one file, which needs nothing else.

    Args:
        compared: what it says.
        path: of the page.
    """
    others = compared.names[1:]
    gains = {name: compared.class_gains(name) for name in others}
    plots = {f"gains-{number}": class_gains(gains[name]) for number, name in enumerate(others) if gains[name]}
    page.write(
        path,
        "compare.html.j2",
        plots,
        compared=compared,
        first=compared.names[0],
        others=others,
        gains=gains,
        verdict=verdict,
        few=FEW,
        shown=2 * _EACH_END,
        disagreements=_disagreements(compared),
        thumbnail=page.Thumbnails(_IMAGES, compared.reading),
    )


def verdict(gain: Interval | None) -> str:
    """What an interval of a difference says."""
    if gain is None:
        return "not tested"
    return "better" if gain.above_zero else "worse" if gain.below_zero else "cannot tell"


def class_gains(gains: Sequence[Gain]) -> dict[str, Any]:
    """A dot and its interval for each class, the most gained first; of many classes those at either end."""
    shown = [*gains[:_EACH_END], *gains[-_EACH_END:]] if len(gains) > 2 * _EACH_END else list(gains)
    rows = [
        {
            "class": one.class_name, "group": one.group, "gain": round(one.gain.value, 2),
            "low": round(one.gain.low, 2), "high": round(one.gain.high, 2), "before": round(one.before, 1),
            "after": round(one.after, 1), "training images": one.training_images, "test images": one.test_images,
            "interval": f"{one.gain.low:+.1f} to {one.gain.high:+.1f}",
        }
        for one in shown
    ]  # fmt: skip
    names = [one.class_name for one in shown]
    scale = alt.Scale(domain=list(GROUP_COLOURS), range=list(GROUP_COLOURS.values()))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("class:N", sort=names, title=None, axis=alt.Axis(ticks=False, labelLimit=150, labelOverlap=False)),
        color=alt.Color("group:N", scale=scale, legend=None),
        opacity=alt.condition(alt.datum["test images"] >= FEW, alt.value(1), alt.value(0.35)),
        tooltip=[
            alt.Tooltip("class:N"), alt.Tooltip("group:N"), alt.Tooltip("gain:Q", title="points of AP", format="+.1f"),
            alt.Tooltip("interval:N", title="95 % interval"), alt.Tooltip("before:Q", title="AP before"),
            alt.Tooltip("after:Q", title="AP after"), alt.Tooltip("training images:Q", format=",d"),
            alt.Tooltip("test images:Q", format=",d"),
        ],
    )  # fmt: skip
    axis = alt.Axis(tickCount=5, format="+d", orient="top", labelExpr="datum.value ? datum.label : '0'")
    lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None, axis=axis), x2="high:Q")
    dots = base.mark_point(filled=True, size=55).encode(x="gain:Q")
    nothing = alt.Chart(alt.InlineData(values=[{"gain": 0}])).mark_rule(color="var(--soft)").encode(x="gain:Q")
    return whole(alt.layer(nothing, lines, dots), height=_ROW * len(rows))


def _disagreements(compared: Compared) -> list[Disagreement]:
    images, targets_NC = compared.images, compared.images.targets()
    found = []
    for row in compared.disagreements(_IMAGES):
        scores = {
            name: _top(compared.probability_MNC[model, row], targets_NC[row], images.class_names)
            for model, name in enumerate(compared.names)
        }
        away_M = np.nansum((compared.probability_MNC[:, row] - targets_NC[row]) ** 2, axis=1)
        found.append(Disagreement(
            images.image_ids[row], images.uris[row], tuple(images.class_names[label] for label in images.labels[row]),
            scores, compared.names[int(away_M.argmin())],
        ))  # fmt: skip
    return found


def _top(probability_C: np.ndarray, targets_C: np.ndarray, class_names: Sequence[str]) -> list[Scored]:
    best = np.argsort(-probability_C, kind="stable")[:_TOP]
    return [
        Scored(
            class_names[label],
            percent(float(probability_C[label])),
            None if np.isnan(targets_C[label]) else bool(targets_C[label]),
        )
        for label in best
    ]
