"""What anybody would try first, on the same cached features: every report says what a model has over it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cprfl.assembly import BATCH, features_of
from cprfl.data.files import fingerprint, write_aside
from cprfl.data.manifest import TEST, TRAIN, Manifest
from cprfl.errors import CheckpointError
from cprfl.evaluation.metrics import predicted_images, write_predictions
from cprfl.experiment import Experiment
from cprfl.models.base import Facts, MethodConfig
from cprfl.models.logistic_regression import LogisticRegression
from cprfl.models.zero_shot import ZeroShot
from cprfl.preparation import Prepared
from cprfl.report.results import BASELINES
from cprfl.training.loop import Worker, mean_logits
from cprfl.training.objective import Inputs
from cprfl.training.sources import StoredFeatures

LINEAR, ZERO_SHOT = "logistic_regression", "zero_shot"
_MOST = 500_000  # training images times classes: a regression for each class, strength and fold takes minutes then


def write_baselines(experiment: Experiment, prepared: Prepared) -> None:
    """Write test logits of a logistic regression, and of zero-shot where there is a joint space, beside a checkpoint.

    Each is fitted once for the same data and kept in the cache, so that variants share it. The model itself is not
    among those that it is compared with. There are none where the image tower moves (it has no cached features), and no
    regression where there are `too_many` images.
    """
    folder = experiment.folder / BASELINES
    for name in (LINEAR, ZERO_SHOT):  # of the model that was here before; the champion's scores are another's matter
        (folder / f"{name}.parquet").unlink(missing_ok=True)
    if prepared.store is None:
        return
    for config, rests_on in _of(experiment, prepared):
        if config.name == experiment.model.name:
            continue
        key = fingerprint(
            [config.model_dump(mode="json"), prepared.record["images"], prepared.manifest.digest, rests_on]
        )
        path = experiment.cache_dir / BASELINES / f"{config.name}-{key}.parquet"
        if not _is_kept(path):
            print(f"{experiment.name}: fitting {config.name}, to compare with", file=sys.stderr)
            _fit_and_score(path, experiment, prepared, config)
        with write_aside(folder / f"{config.name}.parquet") as aside:
            shutil.copyfile(path, aside)


def _is_kept(path: Path) -> bool:
    """Whether the cache has these logits; where they are damaged it has none."""
    if not path.exists():
        return False
    try:
        predicted_images(path)
    except CheckpointError:
        print(f"{path}: damaged; made anew", file=sys.stderr)
        return False
    return True


def too_many(training: Manifest) -> bool:
    """Whether these training images are too many to fit a logistic regression to beside each run."""
    return len(training) * len(training.class_names) > _MOST


def _of(experiment: Experiment, prepared: Prepared) -> Iterator[tuple[MethodConfig, str]]:
    """The baselines of an experiment, each with what it rests on beside images and labels."""
    if not too_many(prepared.manifest.split(TRAIN)):
        yield LogisticRegression.Config(), ""
    if experiment.joint_space and experiment.tower_training is None:  # a tower that was trained is no longer zero-shot
        yield ZeroShot.Config(), prepared.text.fingerprint


def _fit_and_score(path: Path, experiment: Experiment, prepared: Prepared, config: MethodConfig) -> None:
    assert prepared.store is not None
    training, test, store = prepared.manifest.split(TRAIN), prepared.manifest.split(TEST), prepared.store
    facts = Facts.of_data(
        training, prepared.text.embeddings_CM, store.grid_shape[1], store.global_dim, joint_space=experiment.joint_space
    )
    method = config.build(facts)
    method.fit(features_of(StoredFeatures(training, store)))
    method.eval()

    def logits(inputs: Inputs) -> Tensor:
        assert not isinstance(inputs, Tensor)
        found: Tensor = method(*(values.float() for values in inputs))
        return found

    with torch.inference_mode():
        worker = Worker(torch.device("cpu"))
        logits_NC = mean_logits(logits, StoredFeatures(test, store), test.image_ids, BATCH, worker).numpy()
    write_predictions(path, test.image_ids, logits_NC, test.class_names)
