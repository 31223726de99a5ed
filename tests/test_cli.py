"""The command line: exit status 2 and a few lines for what the user can mend, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere.yaml"], "cprfl: nowhere.yaml: configuration file not found"),
        (["evaluate", "CONFIG"], "no checkpoint here; `cprfl train CONFIG` writes one"),
        (["preprocess", "CONFIG", "--set", "dataset.splits.train=x.csv"], "x.csv: CSV file not found"),
        (["predict", "outputs/nothing", "IMAGE"], "no champion is registered"),
        (["predict", "models:/nothing@champion", "IMAGE"], "`cprfl ui` shows what is registered"),
        (["predict", "outputs/nothing", "nowhere.jpg"], "nowhere.jpg: file not found"),
        (["ui", "--output-dir", "nowhere"], "no MLflow store here"),
    ],
)
def test_mistakes_end_with_status_2_and_no_traceback(
    small_config: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "mlflow").mkdir(parents=True, exist_ok=True)
    placed = {"CONFIG": str(small_config), "IMAGE": str(photos / "00.png")}
    status, _, err = call(monkeypatch, capsys, *[placed.get(word, word) for word in words])
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_train_evaluate_and_predict_one_after_the_other(
    small_config: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = call(monkeypatch, capsys, "train", str(small_config))
    assert (status, out.strip()) == (0, f"checkpoint  {tmp_path}/outputs/small/checkpoint")
    # Settings that played no part in the training may differ: the run's parameters stay what it was trained with.
    status, out, _ = call(monkeypatch, capsys, "evaluate", str(small_config), "--set", "promotion.min_gain=1")
    assert status == 0
    assert "small" in out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")
    status, _, err = call(monkeypatch, capsys, "evaluate", str(small_config))
    assert status == 2
    assert "or one whose run is of another MLflow store" in err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    checkpoint, image = str(tmp_path / "outputs" / "small" / "checkpoint"), str(photos / "00.png")
    status, out, _ = call(monkeypatch, capsys, "predict", checkpoint, image, "--json")
    assert status == 0
    scores = json.loads(out)[image]
    assert set(scores) == {"red", "green", "blue"}
    assert all(0 <= score <= 1 for score in scores.values())
    status, out, _ = call(monkeypatch, capsys, "predict", checkpoint, image, "--top", "1")
    assert out.startswith(f"{image}: {max(scores, key=lambda name: scores[name])} ")
