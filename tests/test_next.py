"""Which images to label next."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cprfl.report.findings.label_next import label_next, standardised
from tests.helpers import call


def rows_of(
    probabilities: np.ndarray, features: np.ndarray, labelled: np.ndarray, counts: np.ndarray, n: int
) -> list[int]:
    """Rows of the images that are chosen."""
    return [chosen.row for chosen in label_next(probabilities, features, labelled, counts, n)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 4), st.integers(1, 15))
def test_as_many_as_asked_for_each_once(seed: int, num_images: int, num_labelled: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.choice([0.0, 0.3, 1.0], size=(num_images, 3))
    features, labelled = rng.normal(size=(num_images, 4)), rng.normal(size=(num_labelled, 4))
    found = label_next(probabilities, features, labelled, rng.integers(0, 9, 3), count)
    assert len(found) == len({chosen.row for chosen in found}) == min(num_images, count)
    assert all(0 <= chosen.distance <= 2 + 1e-6 and chosen.score >= 0 for chosen in found)


def test_doubt_about_a_rare_class_comes_before_doubt_about_a_frequent_one() -> None:
    probabilities = np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    assert rows_of(probabilities, np.eye(3), np.empty((0, 3)), np.array([100, 2]), 2) == [1, 0]


def test_copies_of_one_image_are_not_all_chosen() -> None:
    probabilities = np.full((6, 2), 0.5)
    features = np.vstack([np.tile([1.0, 0.0, 0.0], (4, 1)), [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    chosen = rows_of(probabilities, features, np.empty((0, 3)), np.zeros(2), 3)
    assert set(chosen) >= {4, 5} and len(set(chosen) & {0, 1, 2, 3}) == 1
    assert rows_of(probabilities, features, features[:1], np.zeros(2), 2) in ([4, 5], [5, 4])


def test_what_was_chosen_makes_a_class_less_rare() -> None:
    probabilities = np.array([[0.9, 0.0]] * 3 + [[0.0, 0.45]])
    assert rows_of(probabilities, np.eye(4), np.empty((0, 4)), np.array([0, 0.9]), 4).index(3) < 3


def test_features_are_compared_without_what_they_share() -> None:
    rng = np.random.default_rng(0)
    pool, labelled = standardised(rng.normal(5, 3, size=(50, 4)), rng.normal(5, 3, size=(30, 4)))
    assert np.allclose(np.concatenate([pool, labelled]).mean(axis=0), 0, atol=1e-5)


def test_the_command_chooses_from_a_folder_and_reports_what_it_cannot_read(
    small_config: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, capsys, "run", str(small_config))[0] == 0
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(6):
        turned = Image.open(photos / f"{number:02d}.png").transpose(Image.Transpose.ROTATE_180)
        turned.save(pool / f"=new {number}.png")
    shutil.copy(photos / "07.png", pool / "known.png")  # under another name
    words = ["next", str(small_config), "--pool", str(pool), "--pool", str(photos), "--count", "4"]
    files = {option: tmp_path / f"{option}.out" for option in ("csv", "label-studio", "fiftyone")}
    status, out, _ = call(monkeypatch, capsys, *words, *(w for o, f in files.items() for w in (f"--{o}", str(f))))
    assert status == 0
    assert "25 others" in out
    rows = list(csv.DictReader(files["csv"].open()))
    assert len(rows) == 4 and {Path(row["image"]).parent for row in rows} == {pool}
    assert [task["data"]["image_id"] for task in json.loads(files["label-studio"].read_text())] == [
        row["image"] for row in rows
    ]
    assert len(json.loads(files["fiftyone"].read_text())["labels"]) == 4
    (pool / "broken.png").write_bytes(b"no image")
    status, out, err = call(monkeypatch, capsys, *words)
    assert status == 2 and "broken.png" in err and "1 of 7" in err and "4 of 7" in out

    status, out, _ = call(monkeypatch, capsys, "findings", str(small_config), "--count", "3")
    assert status == 0
    for name in ("label_mistakes.csv", "near_duplicates.csv"):
        assert (tmp_path / "outputs" / "small" / name).exists() and name in out.replace("\n", "")
    status, _, err = call(monkeypatch, capsys, "next", str(small_config), "--pool", str(photos))
    assert status == 2 and "in the data set already" in err
