"""Runs side by side: what is compared, what is left out, and the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cprfl.errors import DatasetError
from cprfl.experiment import Experiment, load
from cprfl.report.comparing.compare import compare_results
from cprfl.report.results import Results
from tests.helpers import call, runs
from tests.made_results import images, made_results

NAMES = ("<script>alert(1)</script>", "[red]dog[/red]", "yak")


def targets(count: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((count, 3)) < [0.5, 0.3, 0.1]).astype(float)


def logits(found: np.ndarray, noise: float) -> np.ndarray:
    return 6 * np.nan_to_num(found) - 3 + noise * np.random.default_rng(1).normal(size=found.shape)


@pytest.fixture
def experiment(small_config: Path) -> Experiment:
    return load(small_config)


def named(experiment: Experiment, name: str) -> Experiment:
    return experiment.model_copy(update={"name": name})


def two(experiment: Experiment, photos: Path) -> dict[str, Results]:
    """A model, and one that is better; the test images are photographs."""
    test = targets(18)
    uris = [str(photos / f"{number % 24:02d}.png") for number in range(30 + 18)]
    manifest = images(NAMES, targets(30), test, uris)
    return {
        "old": made_results(named(experiment, "old"), manifest, logits(test, 6)),
        "new": made_results(named(experiment.changed({"train.epochs": 9}), "new"), manifest, logits(test, 1)),
    }


def test_the_better_model_gains_and_settings_that_differ_are_named(experiment: Experiment, photos: Path) -> None:
    found = compare_results(two(experiment, photos))
    gain = found.precision.gain("new", "old")
    assert gain is not None
    assert gain.above_zero
    gains = found.class_gains("new")
    assert [one.gain.value for one in gains] == sorted((one.gain.value for one in gains), reverse=True)
    assert all(one.after - one.before == pytest.approx(one.gain.value) for one in gains)
    assert dict(found.settings) == {"train.epochs": ("4", "9")}
    assert found.left_out == ()
    apart = np.abs(found.probability_MNC[0] - found.probability_MNC[1]).sum(axis=1)
    assert found.disagreements(3).tolist() == np.argsort(-apart)[:3].tolist()


def test_only_what_all_know_is_compared_and_the_rest_is_said(experiment: Experiment) -> None:
    test = targets(40)
    first = made_results(named(experiment, "a"), images(NAMES, targets(30), test), logits(test, 2))
    # Another order of the classes, one class more, ten other images, and one label that was corrected.
    other = np.column_stack([test[:, ::-1], np.ones(40)])
    other[20, 0] = 1 - other[20, 0]
    manifest = images((*NAMES[::-1], "emu"), np.zeros((5, 4)), other[10:], start=10)
    scores = np.column_stack([logits(test, 2)[:, ::-1], np.zeros(40)])[10:]
    second = made_results(named(experiment, "b"), manifest, scores)
    found = compare_results({"a": first, "b": second})
    assert found.images.image_ids == tuple(f"test {number}" for number in range(10, 40))
    assert found.images.class_names == NAMES
    assert found.left_out == (
        "a: left out 10 test images that not all have",
        "b: left out 1 class that not all have: emu",
        "b: 1 label of the test images differ; those of a are taken",
    )
    gain = found.precision.gain("b", "a")
    assert gain is not None
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_runs_without_anything_in_common_are_refused(experiment: Experiment) -> None:
    test = targets(20)
    first = made_results(named(experiment, "a"), images(NAMES, targets(30), test), logits(test, 2))
    elsewhere = images(NAMES, targets(30), test, start=100)
    with pytest.raises(DatasetError, match="no test image in common"):
        compare_results({"a": first, "b": made_results(named(experiment, "b"), elsewhere, logits(test, 2))})
    others = images(("x", "y", "z"), targets(30), test)
    with pytest.raises(DatasetError, match="no class in common"):
        compare_results({"a": first, "c": made_results(named(experiment, "c"), others, logits(test, 2))})
    with pytest.raises(DatasetError, match="two runs or more"):
        compare_results({"a": first})


def test_the_command_takes_folders_and_configurations_and_writes_a_page(
    experiment: Experiment,
    small_config: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = two(experiment, photos).values()
    shutil.move(old.folder, experiment.folder)  # where its configuration file says
    page = tmp_path / "pages" / "compare.html"
    status, printed, _ = call(monkeypatch, capsys, "compare", str(small_config), str(new.folder), "--html", str(page))
    assert status == 0
    assert "new against old" in printed
    assert "[red]dog[/red]" in printed
    html = page.read_text()
    assert "data:image/jpeg" in html
    assert NAMES[0] not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "http://" not in html.split("<script>")[0]
    status, _, said = call(monkeypatch, capsys, "compare", str(new.folder), "nowhere", "--html", str(page))
    assert status == 2
    assert "nowhere: neither a folder" in said


def test_a_run_of_mlflow_is_found_in_its_folder_or_fetched(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, capsys, "run", str(small_config), "--set", "train.epochs=1")[0] == 0
    experiment = load(small_config)
    run_id = runs(experiment)[0].info.run_id
    words = ("compare", run_id, str(experiment.folder), "--html", str(tmp_path / "page.html"))
    where = ("--output-dir", experiment.output_dir)
    assert call(monkeypatch, capsys, *words, *where)[0] == 0
    record = experiment.folder / "run.json"
    assert json.loads(record.read_text())["run_id"] == run_id
    record.unlink()
    status, printed, _ = call(monkeypatch, capsys, *words, *where)
    assert status == 0
    assert f"small against small {run_id[:8]}" in printed
    assert "+0.0 [+0.0, +0.0]" in printed
    status, _, said = call(monkeypatch, capsys, "compare", "0" * 32, *words[2:], *where)
    assert status == 2
    assert "0" * 32 in said
