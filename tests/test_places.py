"""A model's files lie together: one takes the place of another whole, and whatever interrupts it is mended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cprfl.errors import CheckpointError
from cprfl.experiment import Experiment, load
from cprfl.models.base import Facts
from cprfl.training.checkpoint import CheckpointInfo, save_checkpoint
from pipelines.stages import places
from pipelines.stages.model_names import find_model
from pipelines.stages.places import CHALLENGER, adopt, finish_adoption, folder_of_results, forget_results

ROOT = Path(__file__).parent.parent
KEPT = {"notes.txt": "mine", "sweeps/one/best.yaml": "found", "retraining/request.json": "asked"}
OLD = {"checkpoint/weights": "old", "evaluation.json": "old", "baselines/champion.parquet": "old",
       "bad_images.csv": "old", "report.html": "old", "checkpoint/tower": "old"}  # fmt: skip
NEW = {"checkpoint/weights": "new", "evaluation.json": "new", "baselines/linear.parquet": "new", "card.md": "new"}
PARTS = ("checkpoint.json", "model.safetensors", "facts.safetensors")
GOING_ON = {"training/0123/epoch": "half", "unsent/abc.jsonl": "line"}


class KilledError(Exception):
    """The process ends here."""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files_of(folder: Path) -> dict[str, str]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in PARTS]
    return {str(path.relative_to(folder)): path.read_text() for path in found}


@pytest.fixture
def challenger(tmp_path: Path) -> Experiment:
    experiment = load(ROOT / "configs" / "demo.yaml", [f"output_dir={tmp_path}"])
    write(experiment.folder, OLD | KEPT)
    challenger = experiment.placed(CHALLENGER)
    write(challenger.folder, NEW | GOING_ON)
    info = CheckpointInfo({}, "key", ["red"], "encoder", "text", 1, {}, holds_tower=False)
    save_checkpoint(challenger.folder / "checkpoint", {}, Facts.of_text(torch.ones(1, 2), 2), info, None)
    return challenger


def adopted() -> dict[str, str]:
    """Of the model that was there only what everybody shares is left."""
    return NEW | KEPT | {f"{CHALLENGER}/{name}": text for name, text in GOING_ON.items()}


def test_a_challenger_moves_as_a_whole(challenger: Experiment) -> None:
    adopt(challenger)
    assert files_of(challenger.placed("").folder) == adopted()


@pytest.mark.parametrize("step", range(36))
def test_whatever_interrupts_it_the_next_start_does_the_rest(
    challenger: Experiment, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, done = challenger.placed("").folder, list[Any]()

    def killed_at(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            if len(done) == step:
                raise KilledError
            done.append(function)
            return function(*words, **named)

        return call

    with monkeypatch.context() as patched:
        for holder, name in [(Path, "rename"), (Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")]:
            patched.setattr(holder, name, killed_at(getattr(holder, name)))
        try:
            adopt(challenger)
        except KilledError:
            pass
        else:
            assert step > 20
    there = files_of(home)
    said = {there[name] for name in ("checkpoint/weights", "evaluation.json", "report.html") if name in there}
    assert len(said) <= 1, "results beside a checkpoint that they are not of"
    if step == 0:
        assert there == OLD | KEPT | {f"{CHALLENGER}/{name}": text for name, text in (NEW | GOING_ON).items()}
        adopt(challenger)  # it had not left: the retraining does it
    finish_adoption(challenger)
    assert files_of(home) == adopted()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("left", [False, True], ids=["before it left", "on its way"])
def test_a_damaged_challenger_takes_no_place(challenger: Experiment, part: str, left: bool) -> None:
    home = challenger.placed("").folder
    if left:
        challenger.folder.rename(home / ".leaving")
    damaged = (home / ".leaving" if left else challenger.folder) / "checkpoint" / part
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    before = files_of(home)
    with pytest.raises(CheckpointError, match=rf"{part}: damaged.*{'remove .*leaving' if left else 'train again'}"):
        finish_adoption(challenger) if left else adopt(challenger)
    kept = files_of(home)
    assert OLD.items() <= kept.items() and kept.values() and sorted(kept.values()) == sorted(before.values())


def test_nothing_is_mended_where_nothing_was_interrupted(challenger: Experiment) -> None:
    before = files_of(challenger.placed("").folder)
    finish_adoption(challenger)
    assert files_of(challenger.placed("").folder) == before


def test_results_are_forgotten_and_nothing_else(challenger: Experiment) -> None:
    forget_results(challenger.placed(""))
    left = files_of(challenger.placed("").folder)
    assert {"evaluation.json", "report.html", "baselines/champion.parquet"} <= OLD.keys() - left.keys()
    assert {"checkpoint/weights", "bad_images.csv", *KEPT} <= left.keys()
    assert set(places.RESULTS) & left.keys() == set()


def test_a_folder_of_images_does_not_hide_the_experiment_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs, checkpoint = tmp_path / "outputs", tmp_path / "outputs" / "birds" / "checkpoint"
    (tmp_path / "birds").mkdir()
    with pytest.raises(CheckpointError, match=r"birds/checkpoint: no checkpoint here"):
        find_model("birds", outputs)
    assert folder_of_results("birds", outputs) == Path("birds")
    save_checkpoint(
        checkpoint,
        {},
        Facts.of_text(torch.ones(1, 2), 2),
        CheckpointInfo({}, "key", ["red"], "e", "t", 1, {}, False),
        None,
    )
    write(outputs / "birds", {"evaluation.json": "{}"})
    assert find_model("birds", outputs) == str(checkpoint)
    assert folder_of_results("birds", outputs) == outputs / "birds"
    write(tmp_path / "birds", {"evaluation.json": "{}"})
    shutil.copytree(checkpoint, tmp_path / "birds" / "checkpoint")
    assert find_model("birds", outputs) == "birds/checkpoint"
    assert folder_of_results("birds", outputs) == Path("birds")
