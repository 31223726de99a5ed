"""A model beside the champion: both on the same test images, in total, by group and by class."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cprfl.data.files import read_json, write_json
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, Manifest
from cprfl.data.temporary import temporary_folder
from cprfl.errors import CheckpointError
from cprfl.evaluation.comparison import Comparison, compare
from cprfl.evaluation.metrics import evaluate, read_predictions, write_predictions
from cprfl.experiment import Experiment
from cprfl.inference.scoring import PREDICTIONS, score_test_images
from cprfl.preparation import Prepared
from cprfl.report.results import BASELINES
from cprfl.training.checkpoint import load_info
from cprfl.words import counted
from pipelines.stages.places import COMPARISON
from pipelines.tracking import registry
from pipelines.tracking.runs import Run
from pipelines.tracking.store import Store

CHAMPION_SCORES = "champion.parquet"
GROUPS = {"total": "mAP", "head": "mAP_head", "medium": "mAP_medium", "tail": "mAP_tail"}


@dataclass(frozen=True)
class ClassGain:
    """Points of average precision that a model has over the champion on one class."""

    name: str
    points: float
    training_images: int

    def __str__(self) -> str:
        return f"{self.name} {self.points:+.1f} ({counted(self.training_images, 'training image')})"


@dataclass(frozen=True)
class Standing:
    """How a model stands beside the champion.

    Attributes:
        champion: its version.
        comparison: of the two, on the same images.
        classes: that both were measured on, the one that gained most first.
    """

    champion: str
    comparison: Comparison
    classes: tuple[ClassGain, ...]

    @property
    def sentence(self) -> str:
        """Better or worse, and how surely."""
        new, old = self.comparison.challenger["mAP"], self.comparison.champion["mAP"]
        low, high = self.comparison.gain_interval
        word = "better than" if low > 0 else "worse than" if high < 0 else "not surely better or worse than"
        interval = f"95 % of the resamples between {low:+.2f} and {high:+.2f}"
        return f"{word} the champion, version {self.champion}: mAP {new - old:+.2f} points ({interval})"

    @property
    def groups(self) -> dict[str, tuple[float, float]]:
        """Mean average precision of the champion and of the model, percent, for the total and each group."""
        new, old = self.comparison.challenger, self.comparison.champion
        return {group: (old[name], new[name]) for group, name in GROUPS.items() if name in old and name in new}

    def gained(self, count: int) -> list[ClassGain]:
        """The classes that gained most."""
        return [found for found in self.classes[:count] if found.points > 0]

    def lost(self, count: int) -> list[ClassGain]:
        """The classes that lost most."""
        return [found for found in self.classes[::-1][:count] if found.points < 0]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON-like values."""
        classes = [asdict(found) for found in self.classes]
        return {"champion_version": self.champion, **self.comparison.as_json(), "classes": classes}

    @classmethod
    def read(cls, path: Path) -> Standing:
        """Read what `write` wrote.

        Raises:
            CheckpointError: where the file is missing or damaged.
        """
        values = read_json(path, CheckpointError, "`cprfl retrain CONFIG` compares anew once it is removed")
        classes = tuple(ClassGain(**found) for found in values.pop("classes"))
        champion = values.pop("champion_version")
        del values["promoted"], values["reason"]
        low, high = values.pop("gain_interval")
        return cls(champion, Comparison(**values, gain_interval=(low, high)), classes)


def check_champion(store: Store, name: str) -> None:
    """Make sure, before anything is trained, that the champion can be compared with.

    Raises:
        CheckpointError: where another version of cprfl wrote it.
    """
    if (present := registry.champion(store, name)) is None:
        return
    with temporary_folder() as folder:
        try:
            load_info(registry.fetch(store, name, present, folder).checkpoint)
        except CheckpointError as error:
            raise CheckpointError(
                f"the champion, models:/{name}/{present}, cannot be compared with: {error}; set the alias "
                f"{registry.CHAMPION} on another version in `cprfl ui`, or delete it, and the next model is the first"
            ) from None


def read_standing(experiment: Experiment) -> Standing | None:
    """How the evaluated model in the experiment's place stands beside the champion, if there was one."""
    path = experiment.folder / COMPARISON
    return Standing.read(path) if path.exists() else None


def stand_beside_champion(store: Store, experiment: Experiment, prepared: Prepared, run: Run) -> Standing | None:
    """Compare an evaluated model with the present champion on its test images.

    What comes of it, and the champion's scores, lie beside the model and are logged to its run.

    Args:
        store: where the champion is registered.
        experiment: with the model's place.
        prepared: its data.
        run: open, the model's.

    Returns:
        How it stands; none where there is no champion, or the model itself is it: it was made so, and what comes after
        that was interrupted.
    """
    present = registry.champion(store, experiment.name)
    if present is None or present == registry.version_of_run(store, experiment.name, run.id):
        return None
    test = prepared.manifest.split(TEST)
    with temporary_folder() as folder:
        holder = registry.fetch(store, experiment.name, present, folder)
        scores_NC = score_test_images(experiment, prepared, holder.checkpoint, holder.encoder_weights)
        champion_NC = _in_classes_of(prepared.manifest, scores_NC, holder)
    write_predictions(experiment.folder / BASELINES / CHAMPION_SCORES, test.image_ids, champion_NC, test.class_names)
    standing = _standing(experiment, prepared.manifest, champion_NC, present)
    standing.write(experiment.folder / COMPARISON)
    run.log_json(standing.as_json(), COMPARISON)
    run.log_results({f"gain/{GROUPS[group]}": new - old for group, (old, new) in standing.groups.items()})
    run.log_tags({"beside the champion": standing.sentence})
    return standing


def _standing(experiment: Experiment, manifest: Manifest, champion_NC: np.ndarray, version: str) -> Standing:
    test, counts = manifest.split(TEST), class_counts(manifest)
    targets_NC = test.targets()
    model_NC = read_predictions(experiment.folder / PREDICTIONS, test.image_ids)
    new, old = (
        evaluate(scores, targets_NC, manifest.class_names, counts, manifest.groups)
        for scores in (model_NC, champion_NC)
    )
    comparison = compare(new, old, model_NC, champion_NC, targets_NC, experiment.promotion, experiment.seed)
    gains = [
        ClassGain(name, new.metrics[f"AP/{name}"] - old.metrics[f"AP/{name}"], int(counts[label]))
        for label, name in enumerate(manifest.class_names)
        if f"AP/{name}" in new.metrics
    ]
    return Standing(version, comparison, tuple(sorted(gains, key=lambda found: -found.points)))


def _in_classes_of(manifest: Manifest, logits_NC: np.ndarray, holder: registry.RegisteredModel) -> np.ndarray:
    """The champion's scores in the order of the present classes; of one that it does not know it has no opinion."""
    known = {name: column for column, name in enumerate(load_info(holder.checkpoint).class_names)}
    columns = [
        logits_NC[:, known[name]] if name in known else np.zeros(len(logits_NC), logits_NC.dtype)
        for name in manifest.class_names
    ]
    return np.stack(columns, axis=1)
