"""What mends things that several checks find: only settings that the experiment has and that would change something."""

from __future__ import annotations

from cprfl.data.readers.base import DatasetConfig
from cprfl.experiment import Experiment


def keep_together(dataset: DatasetConfig) -> str:
    """How pictures that belong together come into one split."""
    if dataset.split is None:
        return "Keep them in one split."
    if dataset.split.groups_by is None:
        return "Keep them in one split: dataset.split.groups_by deals out together what has one group."
    return "Keep them in one split: give them one group (dataset.split.groups_by)."


def more_tested(dataset: DatasetConfig) -> str:
    """How classes that no test image shows get some."""
    if dataset.split is not None and dataset.split.test:
        return "The split is dealt out by classes, and these have too few images for a share: add images."
    return (
        "Add test images that show them; or leave out the data set's own test split, and dataset.split: {test: 0.2} "
        "gives each class its share."
    )


def narrowing(experiment: Experiment) -> list[str]:
    """What of an experiment's settings, of which each method has its own, brings training and new images nearer."""
    of_method = {"dropout": "more model.dropout", "dim": "a smaller model.dim", "mlp_dim": "a smaller model.mlp_dim"}
    ways = [way for setting, way in of_method.items() if setting in type(experiment.model).model_fields]
    if experiment.epochs:
        ways = ["more train.weight_decay", *ways]
        if experiment.epochs > 1:
            ways = ["fewer train.epochs", *ways]
        if experiment.selects != "folds" and experiment.protocol == "honest" and not experiment.train.moves_tower:
            ways = ["train.select: folds", *ways]
        if experiment.tower_training is None:  # a tower that moves sees augmented images as it is
            ways = [*ways, "more encoder.views"]
    return [*ways, "more training images"] if _learns(experiment) else ways


def beating(experiment: Experiment) -> str:
    """What may lift a model above a simpler one on the same features, beside taking that."""
    ways = [] if hasattr(experiment.model, "members") else ["put both into an ensemble"]
    if experiment.epochs:
        ways.append("train longer or with more train.weight_decay")
    if _learns(experiment):
        ways.append("train on more images")
    return ", or ".join(ways)


def _learns(experiment: Experiment) -> bool:
    """Whether images are what it is fitted to: texts alone make a zero-shot model."""
    return experiment.model.by_gradients or experiment.model.in_closed_form
