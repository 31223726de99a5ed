"""Where models lie below ``outputs/<name>``, and how one takes the place of another.

The model of an experiment lies in ``outputs/<name>`` itself. One that may replace it is made in a folder of its own
below, with everything that is said about it, and moves as a whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cprfl.data.files import write_record
from cprfl.errors import CheckpointError
from cprfl.experiment import Experiment, load
from cprfl.inference.scoring import EVALUATION, PREDICTIONS
from cprfl.preparation import BAD_IMAGES, CHECKPOINT, MANIFEST, PREPARED, Prepared
from cprfl.reading import SAME_CONTENT
from cprfl.report.results import BASELINES
from cprfl.training.checkpoint import check_parts
from pipelines.tracking.results import RUN, is_run_id

CHALLENGER, TUNED, RETRAINING = "challenger", "tuned", "retraining"
"""Places below ``outputs/<name>``: of a retraining's model, of a sweep's winner, of what a retraining was asked for."""

COMPARISON = "comparison.json"
RESULTS = (EVALUATION, PREDICTIONS, BASELINES, COMPARISON, "report.html", "long_tail.png", RUN)
"""What is said about a checkpoint, and is wrong beside another one."""

_OF_A_MODEL = (*RESULTS, MANIFEST, PREPARED, BAD_IMAGES, SAME_CONTENT, CHECKPOINT)
_UNFINISHED = ("training", "unsent")  # of trainings that may still go on, whatever becomes of the model beside them
_LEAVING, _ARRIVING = ".leaving", ".arriving"


def forget_results(experiment: Experiment) -> None:
    """Remove what is said about the checkpoint in the experiment's folder: another one is about to lie there."""
    _remove(experiment.folder, RESULTS)


def folder_of_results(run: str, output_dir: Path) -> Path | None:
    """The folder that somebody means: itself, or an experiment's by its file or its name; none of the id of a run.

    A folder without results, such as the images', does not hide the experiment of its name.

    Raises:
        CheckpointError: where it is none of these.
    """
    folder, named = Path(run), output_dir / run
    if folder.is_file():
        return load(folder).folder
    if (named / EVALUATION).exists() and not (folder / EVALUATION).exists():
        return named
    if folder.is_dir():
        return folder
    if is_run_id(run):
        return None
    raise CheckpointError(
        f"{run}: neither a folder of results, nor a configuration file, nor an experiment in {output_dir}, nor the id "
        "of an MLflow run"
    )


def begin(experiment: Experiment, prepared: Prepared, asked: Path) -> None:
    """Make the folder of a model that is about to be trained: its data, and nothing of the model before.

    Args:
        experiment: with the model's place.
        prepared: its data.
        asked: folder in which they were prepared.
    """
    folder = experiment.folder
    folder.mkdir(parents=True, exist_ok=True)
    _remove(folder, [path.name for path in folder.iterdir() if path.name not in _UNFINISHED])
    prepared.manifest.write(folder / MANIFEST)
    write_record(folder / PREPARED, prepared.record | {"metrics": prepared.metrics})
    for name in (BAD_IMAGES, SAME_CONTENT):
        if (asked / name).exists():
            shutil.copy(asked / name, folder / name)


def adopt(experiment: Experiment) -> None:
    """Make a placed model that of ``outputs/<name>``, in place of the one that is there.

    It leaves its folder by one renaming. Whatever interrupts what follows, `finish_adoption` does the rest; until then
    no file lies beside a checkpoint that it is not of.

    Raises:
        CheckpointError: where it is damaged; nothing has moved then.
    """
    finish_adoption(experiment)
    check_parts(experiment.folder / CHECKPOINT)
    experiment.folder.rename(experiment.placed("").folder / _LEAVING)
    finish_adoption(experiment)


def finish_adoption(experiment: Experiment) -> None:
    """Do what is left of an adoption that was interrupted; nothing where none was.

    Raises:
        CheckpointError: where the model that was to arrive is damaged; the one that is there stays then.
    """
    home = experiment.placed("").folder
    leaving, arriving = home / _LEAVING, home / _ARRIVING
    if arriving.exists():
        _arrive(arriving)
    if leaving.exists():
        for name in _UNFINISHED:
            _put_back(leaving / name, home / CHALLENGER / name)
        _check_leaving(leaving)
        _remove(home, [*_OF_A_MODEL, *(path.name for path in leaving.iterdir())])
        leaving.rename(arriving)
        _arrive(arriving)


def _arrive(arriving: Path) -> None:
    for path in sorted(arriving.iterdir(), key=lambda path: path.name != CHECKPOINT):
        path.rename(arriving.parent / path.name)
    arriving.rmdir()


def _check_leaving(leaving: Path) -> None:
    try:
        check_parts(leaving / CHECKPOINT)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; it was about to take the place of the model in {leaving.parent}, which is still there: remove "
            f"{leaving} to keep that one"
        ) from None


def _put_back(source: Path, target: Path) -> None:
    if source.exists():
        target.parent.mkdir(exist_ok=True)
        source.rename(target)


def _remove(folder: Path, names: tuple[str, ...] | list[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
