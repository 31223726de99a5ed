"""What Ray Train writes down of a training's checkpoints, written anew where it was killed in the middle of that."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from cprfl.data.files import write_json
from cprfl.errors import CheckpointError
from cprfl.experiment import Experiment
from cprfl.progress import say
from cprfl.recipe import checkpoint_score
from cprfl.training.checkpoint import CheckpointInfo, check_parts, load_info, load_state

SCORE = "checkpoint_score"  # Ray keeps the checkpoint in which it is highest, and the latest to resume from
_NAME = "checkpoint_manager_snapshot.json"


def mend_snapshot(experiment: Experiment, folder: Path) -> None:
    """Make sure that Ray can go on with a training: from the checkpoints that are whole, if its notes are not.

    Args:
        experiment: that is trained.
        folder: of the training in its storage.
    """
    snapshot = folder / _NAME
    if not snapshot.exists() or _holds(snapshot):
        return
    found = dict(sorted(_whole(folder).items(), key=lambda pair: pair[1].epoch))
    say(f"{snapshot}: damaged; going on from {len(found)} of the checkpoints beside it")
    results = [
        _TrainingResultState(
            checkpoint_dir_name=name,
            metrics={
                SCORE: checkpoint_score(experiment, info.metrics, info.epoch), "epoch": info.epoch, **info.metrics
            },
        )
        for name, info in found.items()
    ]  # fmt: skip
    if not results:
        snapshot.unlink()  # it begins anew
        return
    latest, best = results[-1], max(results, key=lambda result: (result.metrics[SCORE], result.metrics["epoch"]))
    kept = [latest] if best is latest else [latest, best]  # the scores ascend
    state = _CheckpointManagerState(
        checkpoint_results=kept, checkpoint_report_indices=[each.metrics["epoch"] - 1 for each in kept],
        latest_checkpoint_result=latest, current_report_index=latest.metrics["epoch"],
        pending_training_results=[], pending_validation_specs=[], validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[], failed_validation_checkpoint_dir_names=[],
    )  # fmt: skip
    write_json(snapshot, state.model_dump(mode="json"))


def _holds(snapshot: Path) -> bool:
    """Whether Ray can read it, and what it names is whole."""
    try:
        state = _CheckpointManagerState.model_validate_json(snapshot.read_bytes())
    except ValidationError:
        return False
    named = [*state.checkpoint_results, *([state.latest_checkpoint_result] if state.latest_checkpoint_result else [])]
    return all(_info(snapshot.parent / each.checkpoint_dir_name) is not None for each in named)


def _whole(folder: Path) -> dict[str, CheckpointInfo]:
    """The checkpoints that are whole, by the names of their folders."""
    found = {path.name: _info(path) for path in folder.glob("checkpoint_*") if path.is_dir()}
    return {name: info for name, info in found.items() if info is not None}


def _info(checkpoint: Path) -> CheckpointInfo | None:
    try:
        check_parts(checkpoint)
        load_state(checkpoint)
        return load_info(checkpoint)
    except CheckpointError:
        return None
