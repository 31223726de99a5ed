"""A data set's report as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cprfl.data.images import Reading
from cprfl.report import charts, page
from cprfl.report.data_set.labels import SPLITS
from cprfl.report.data_set.problems import in_a_row, problems
from cprfl.report.data_set.report import DataReport

_PICTURES = 60  # thumbnails of the page
_GROUPS = 8  # of copies, of each kind, that are shown with their pictures
_LISTED = 500  # groups of copies that are listed by name


def write_page(report: DataReport, path: Path, reading: Reading) -> None:
    """Write the page: one file, which needs nothing else.

    Args:
        report: what it says.
        path: of the page.
        reading: how image files are read, for the pictures.
    """
    labels = report.labels
    splits = [name for name in SPLITS if labels.images[name]]
    plots: dict[str, dict[str, Any]] = {f"long-tail-{name}": charts.long_tail(labels, name) for name in splits}
    plots["labels-per-image"] = charts.labels_per_image(labels)
    plots["together"] = charts.together(labels)
    page.write(
        path,
        "data_set.html.j2",
        plots,
        report=report,
        splits=splits,
        problems=problems(report),
        thumbnail=page.Thumbnails(_PICTURES, reading),
        in_a_row=in_a_row,
        shown=_GROUPS,
        listed=_LISTED,
    )
