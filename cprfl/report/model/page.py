"""A model's report as a page, and its plot of the long tail as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprfl.report import page
from cprfl.report.checks.base import MODEL
from cprfl.report.model import charts as model_charts
from cprfl.report.model.heat import heat_of, seen, transform_of
from cprfl.report.model.images_of_class import top
from cprfl.report.model.report import ModelReport
from cprfl.report.model.summary import in_words, what_came_of_it, what_was_run
from cprfl.report.page import Thumbnail, thumbnails
from cprfl.report.results import Results

_PAIRS = 12  # of pictures that are nearly the same
_LARGE, _SMALL, _MANY = 160, 128, 700  # pixels of a picture; small ones where there are many


@dataclass(frozen=True)
class Score:
    """What an image scores for a class.

    Attributes:
        label: of the class.
        probability: as the decisions read it.
        labelled: whether the data set says that it shows the class; none where nobody knows.
    """

    label: int
    probability: float
    labelled: bool | None


@dataclass(frozen=True)
class Picture:
    """A test image as it is shown.

    Attributes:
        number: of its picture on the page; none where it does not decode.
        ratio: of its width to its height.
        seen: the part of it that the encoder sees: left, top, width and height in percent.
        image_id: its name.
        scores: the five highest, and those of the other labels that it has, the highest first.
    """

    number: int | None
    ratio: float
    seen: tuple[float, ...]
    image_id: str
    scores: Sequence[Score]


def write_page(report: ModelReport, path: Path) -> None:
    """Write the page: one file, which needs nothing else.

    Raises:
        StorageError: where the images' storage cannot be reached.
    """
    results = report.results
    pairs = [(row, label) for label, chosen in enumerate(report.images) for row in chosen.rows]
    rows = sorted({row for row, _ in pairs})
    findings = report.findings
    duplicates = (findings.duplicates or ())[:_PAIRS]
    others = [suspect.uri for suspect in findings.mistakes or ()] + [uri for pair in duplicates for uri in pair.uris]
    made = _thumbnails(results, [*(results.test.uris[row] for row in rows), *others])
    number = {uri: place for place, uri in enumerate(made)}
    page.write(
        path,
        "model.html.j2",
        _charts(report),
        also=("model",),
        report=report,
        model=MODEL,
        sentences=(what_was_run(report), what_came_of_it(report)),
        in_words=in_words,
        columns=model_charts.class_columns,
        shown=_shown(results, rows, made, number),
        heat=heat_of(results, pairs),
        number=number,
        duplicates=duplicates,
        pictures=[thumbnail.jpeg for thumbnail in made.values()],
        intervals=report.intervals.classes(MODEL),
        label_of={name: label for label, name in enumerate(results.manifest.class_names)},
    )


def _charts(report: ModelReport) -> dict[str, dict[str, Any]]:
    charts = {
        "comparison": model_charts.comparison(report),
        "long-tail": model_charts.long_tail(report),
        "precision-recall": model_charts.precision_recall(),
        "scores": model_charts.scores(),
        "reliability": model_charts.reliability(),
    }
    groups = {
        f"reliability-{found.name}": model_charts.group_reliability(found.reliability)
        for found in report.groups
        if found.reliability
    }
    return charts | groups


def _thumbnails(results: Results, uris: Sequence[str]) -> dict[str, Thumbnail]:
    return thumbnails(uris, results.experiment.encoder.reading, _LARGE if len(uris) <= _MANY else _SMALL)


def _shown(
    results: Results, rows: Sequence[int], made: Mapping[str, Thumbnail], number: Mapping[str, int]
) -> dict[int, Picture]:
    transform, found = transform_of(results), dict[int, Picture]()
    for row in rows:
        uri = results.test.uris[row]
        width, height = (made[uri].width, made[uri].height) if uri in made else (1, 1)
        part = seen(transform, width, height)
        box = (part.left, part.top, part.right - part.left, part.bottom - part.top)
        found[row] = Picture(
            number.get(uri), width / height, tuple(round(100 * share, 2) for share in box),
            results.test.image_ids[row], _scores(results, row),
        )  # fmt: skip
    return found


def _scores(results: Results, row: int) -> list[Score]:
    """The five highest, and those of the other labels that the image has."""
    (probability_C,), test = results.decisions.probabilities(results.logits[[row]]), results.test
    unknown, labels = set(test.unknown[row]) if test.unknown else set(), test.labels[row]
    chosen = sorted({*top(probability_C), *labels}, key=lambda label: -probability_C[label])
    return [
        Score(label, float(probability_C[label]), None if label in unknown else label in labels) for label in chosen
    ]
