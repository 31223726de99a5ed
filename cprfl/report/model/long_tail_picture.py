"""The plot of the long tail as a picture, for places that show no page."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from cprfl.data.files import write_aside
from cprfl.report.model.report import ModelReport

_COLOURS = {"head": "#4269d0", "medium": "#2a9d8f", "tail": "#e4632d"}


def write_picture(report: ModelReport, path: Path) -> None:
    """Write AP of each class against its training images as PNG."""
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for group, colour in _COLOURS.items():
        members = [facts for facts in report.classes if facts.group == group and facts.ap is not None]
        axes.scatter(
            [facts.training_images for facts in members], [facts.ap or 0 for facts in members], s=26, c=colour,
            label=f"{group} ({len(members)})", zorder=2,
        )  # fmt: skip
    thresholds = report.results.manifest.groups
    for edge in (thresholds.tail, thresholds.head):
        axes.axvline(edge, color="#c9ced8", linewidth=1, zorder=1)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("training images")
    axes.set_ylabel("test AP, %")
    axes.set_title(report.results.experiment.name, loc="left", fontsize=11, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with write_aside(path) as aside:
        figure.savefig(aside, format="png")
