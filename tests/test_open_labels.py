"""Labels that nobody knows: every reader that finds some says how many, why, and what they count for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cprfl.data.manifest import Manifest
from cprfl.data.synthetic import SyntheticDataset
from cprfl.report.data_set.labels import label_facts
from cprfl.report.data_set.problems import problems
from cprfl.report.data_set.report import DataReport
from tests.tables import read

COLUMNS = "image,cat,dog,yak\na.jpg,1,-1,0\nb.jpg,0,,\nc.jpg,-1,1,1\n"


def report_of(manifest: Manifest) -> DataReport:
    return DataReport(
        "some", SyntheticDataset(), len(manifest), manifest.groups, label_facts(manifest), manifest.notes, (), None,
        None, (), None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said", "open_labels"),
    [
        ({}, ("2 labels are neither surely present nor surely absent; taken for unknown",
              "2 cells are blank; taken for negative"), 2),
        ({"uncertain": "negative", "unmentioned": "unknown"},
         ("2 labels are neither surely present nor surely absent; taken for negative",
          "2 cells are blank; taken for unknown"), 2),
        ({"unmentioned": "unknown"}, ("taken for unknown (dataset.uncertain)",
                                      "taken for unknown (dataset.unmentioned)"), 4),
    ],
)  # fmt: skip
def test_columns_say_what_became_of_cells_that_are_neither(
    tmp_path: Path, options: dict[str, str], said: tuple[str, ...], open_labels: int
) -> None:
    notes = read(tmp_path, COLUMNS, **options).notes
    for words in said:
        assert any(words in note for note in notes), notes
    assert any(note.startswith(f"{open_labels} of 9 labels") and "unknown" in note for note in notes), notes


def test_columns_that_are_all_said_say_nothing(tmp_path: Path) -> None:
    notes = read(tmp_path, "image,cat,dog\na.jpg,1,0\nb.jpg,0,1\n").notes
    assert not any("unknown" in note or "blank" in note for note in notes)


def test_minus_one_that_is_the_only_no_is_not_counted_as_open(tmp_path: Path) -> None:
    notes = read(tmp_path, "image,cat,dog\na.jpg,1,-1\nb.jpg,-1,1\n").notes
    assert not any("uncertain" in note for note in notes)


def test_names_say_how_many_labels_they_leave_open(tmp_path: Path) -> None:
    notes = read(tmp_path, "image,labels\na.jpg,cat\nb.jpg,dog\n", unmentioned="unknown").notes
    assert any(note.startswith("2 of 4 labels") for note in notes)


def test_an_image_without_a_label_counts_against_what_is_known_of_it_alone() -> None:
    ids = ("a", "b", "c", "d")
    manifest = Manifest(("cat", "dog"), ids, ids, ("train",) * 4, ((0,), (), (), ()), ((), (), (1,), (0, 1)))

    def mend(found: Manifest) -> str:
        return next(one.mend for one in problems(report_of(found)) if one.code == "unlabelled")

    assert mend(manifest) == (
        "1 count for nothing, as all their labels are unknown; 1 count only against the classes that they are known "
        "not to show; the other 1 against every class: take out those that nobody looked at."
    )
    assert mend(replace(manifest, unknown=())).startswith("Each counts against every class")
    assert "against" not in mend(replace(manifest, unknown=((), (0, 1), (0, 1), (0, 1))))
