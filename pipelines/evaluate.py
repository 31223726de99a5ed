"""Stage 3: a checkpoint's scores on the test images, and what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST
from cprfl.errors import CheckpointError, DatasetError
from cprfl.evaluation import Evaluation, evaluate, write_predictions
from cprfl.experiment import Experiment
from cprfl.predictor import Predictor, load_model
from cprfl.training.checkpoint import ENCODER, load_info
from cprfl.training.loop import predict
from cprfl.training.sources import ImageFiles, StoredFeatures
from pipelines.preprocess import Prepared

EVALUATION, PREDICTIONS = "evaluation.json", "predictions.parquet"


def evaluate_checkpoint(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> Evaluation:
    """Write ``evaluation.json`` and ``predictions.parquet`` of the test split into the experiment's folder.

    Raises:
        CheckpointError: where the checkpoint was trained on other classes or another encoder.
        DatasetError: where there is no test split.
    """
    info, manifest = load_info(checkpoint), prepared.read_manifest()
    if tuple(info.class_names) != manifest.class_names:
        differing = sorted(set(info.class_names) ^ set(manifest.class_names)) or "their order"
        raise CheckpointError(f"{checkpoint}: trained on other classes than the data set's: {differing}; train again")
    test = manifest.split(TEST)
    if not len(test):
        raise DatasetError("dataset.splits: no test image; give a split named test to evaluate on")
    scores = score(experiment, prepared, checkpoint)
    result = evaluate(scores, test.targets(), manifest.class_names, class_counts(manifest), manifest.groups)
    write_predictions(experiment.folder / PREDICTIONS, test.image_ids, scores, manifest.class_names)
    result.write(experiment.folder / EVALUATION, protocol=experiment.protocol, images=len(test), epoch=info.epoch)
    return result


def score(
    experiment: Experiment, prepared: Prepared, checkpoint: Path, encoder_weights: Path | None = None
) -> np.ndarray:
    """Logits [n, c] of the test images' plain views, from cached features where they are the checkpoint's encoder's.

    Args:
        experiment: whose test images.
        prepared: its data.
        checkpoint: what scores them.
        encoder_weights: its encoder, where that comes with it (a registered model); without it, features of another
            encoder are an error.

    Raises:
        CheckpointError: where the checkpoint was trained on features of another encoder than those at hand.
    """
    test = prepared.read_manifest().split(TEST)
    if prepared.features and not (checkpoint / ENCODER).exists():
        store = prepared.open_features()
        model, info = load_model(checkpoint)
        if info.encoder_fingerprint == store.description["encoder_fingerprint"]:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return predict(model, StoredFeatures(test, store).in_order(64), device).numpy()
        if encoder_weights is None:
            raise CheckpointError(
                f"{checkpoint}: trained on features of another encoder than {store.folder.uri}; train again"
            )
    predictor = Predictor.load(checkpoint, encoder_weights)
    images = ImageFiles(test, predictor.encoder, num_processes=experiment.train.finetune.num_processes)
    return predictor.logits(images.in_order(experiment.encoder.batch_size)).numpy()
