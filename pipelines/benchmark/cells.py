"""A cell of a benchmark: one method trained with one seed and tested once, in a process of its own."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cprfl import recipe
from cprfl.assembly import text_tower_of
from cprfl.data.files import read_record, write_record
from cprfl.data.manifest import TEST
from cprfl.errors import UserError
from cprfl.experiment import Experiment
from cprfl.inference.scoring import evaluate_checkpoint
from cprfl.preparation import Prepared, prepare
from cprfl.progress import say
from cprfl.training.checkpoint import load_facts, load_info, load_tower

RESULT = "cell.json"


@dataclass(frozen=True)
class Cell:
    """What came of a cell.

    Attributes:
        metrics: of the test images, percent.
        found: what the training says of itself (``folds/...``).
        seconds: of training and testing, with what came before it; cached features are not in it.
        trained_parameters: numbers that gradients or a solver chose.
        memory_mb: peak of the process's resident memory.
        gpu_memory_mb: peak of the GPU's memory; 0 without one.
        key: names experiment and data; another key is another cell.
    """

    metrics: dict[str, float]
    found: dict[str, float]
    seconds: float
    trained_parameters: int
    memory_mb: float
    gpu_memory_mb: float
    key: str


def run_cell(settings: dict[str, Any]) -> dict[str, Any]:
    """Train and test an experiment, and what comes before it; the result is written into its folder too.

    A finished cell of the same experiment and data is not run again.
    """
    experiment = Experiment.model_validate(settings)
    if (before := experiment.first_experiment) is not None:
        prepared = prepare(before, needs=[TEST])
        started = time.monotonic()
        if not recipe.is_trained(before, prepared):
            _train(before, prepared)
        seconds = time.monotonic() - started
    else:
        seconds = 0.0
    prepared = prepare(experiment, needs=[TEST])
    key = prepared.training_key(experiment)
    if (done := finished_cell(experiment)) is not None and done.key == key:
        return asdict(done)
    started = time.monotonic()
    checkpoint, metrics = _train(experiment, prepared)
    seconds += time.monotonic() - started
    found = {name: value for name, value in load_info(checkpoint).metrics.items() if name.startswith("folds/")}
    scale = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    cell = Cell(metrics, found, seconds, trained_parameters(experiment, checkpoint), memory, gpu, key)
    write_record(experiment.folder / RESULT, asdict(cell))
    return asdict(cell)


def finished_cell(experiment: Experiment) -> Cell | None:
    """The result in an experiment's folder, if there is one; a damaged one is none, and said to be."""
    path = experiment.folder / RESULT
    if not path.exists():
        return None
    try:
        return Cell(**read_record(path, UserError, "the cell is run again"))
    except UserError as error:
        say(str(error))
        return None


def trained_parameters(experiment: Experiment, checkpoint: Path) -> int:
    """Numbers that the training chose: weights with a gradient, what a solver fitted, and the tower's that moved."""
    method, info = experiment.model.build(load_facts(checkpoint), text_tower_of(experiment)), load_info(checkpoint)
    fitted = 0
    if experiment.model.in_closed_form:
        named = ("weight_CF", "weight_EC")  # of linear classifiers of features, and of cells
        fitted = sum(value.numel() for name, value in method.state_dict().items() if name.endswith(named))
    by_gradients = sum(value.numel() for value in method.parameters() if value.requires_grad)
    tower = 0
    if info.holds_tower and experiment.train.moves_tower:
        tower = sum(value.numel() for value in load_tower(checkpoint).values())
    return by_gradients + fitted + tower


def _train(experiment: Experiment, prepared: Prepared) -> tuple[Path, dict[str, float]]:
    checkpoint = recipe.train(experiment, prepared)
    metrics = evaluate_checkpoint(experiment, prepared, checkpoint).metrics
    recipe.remove_resumable(experiment, prepared)
    return checkpoint, metrics
