"""Stage 3: a checkpoint's scores on the test images, and what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cprfl.data.feature_store import FeatureStore
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, Manifest
from cprfl.errors import CheckpointError, DatasetError
from cprfl.evaluation import Evaluation, evaluate, write_predictions
from cprfl.experiment import Experiment
from cprfl.predictor import Predictor, load_model
from cprfl.training.checkpoint import load_info
from cprfl.training.loop import predict
from cprfl.training.sources import ImageFiles
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
    if prepared.features:
        scores = _scores_of_features(checkpoint, prepared.open_features(), test)
    else:
        predictor = Predictor.load(checkpoint)
        images = ImageFiles(test, predictor.encoder, num_processes=experiment.train.finetune.num_processes)
        scores = predictor.logits(images.in_order(experiment.encoder.batch_size)).numpy()
    result = evaluate(scores, test.targets(), manifest.class_names, class_counts(manifest), manifest.groups)
    write_predictions(experiment.folder / PREDICTIONS, test.image_ids, scores, manifest.class_names)
    result.write(experiment.folder / EVALUATION, protocol=experiment.protocol, images=len(test), epoch=info.epoch)
    return result


def _scores_of_features(checkpoint: Path, store: FeatureStore, test: Manifest) -> np.ndarray:
    """Logits [n, c] of the test images' plain views, read shard by shard."""
    model, info = load_model(checkpoint)
    if info.encoder_fingerprint != store.description["encoder_fingerprint"]:
        raise CheckpointError(f"{checkpoint}: trained on features of another encoder than {store.path}; train again")
    row = {image_id: number for number, image_id in enumerate(test.image_ids)}
    logits_NC = torch.full((len(test), len(test.class_names)), torch.nan)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for shard in store.shards():
        plain = [i for i, image_id in enumerate(shard.image_ids) if shard.views[i] == 0 and image_id in row]
        if plain:
            rows = [row[shard.image_ids[i]] for i in plain]
            logits_NC[rows] = predict(model, iter(torch.from_numpy(shard.grid[plain]).split(64)), device)
    return logits_NC.numpy()
