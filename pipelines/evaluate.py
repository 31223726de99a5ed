"""Stage 3: a checkpoint's scores on the test images, and what they are worth."""

from __future__ import annotations

from pathlib import Path

import torch

from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST
from cprfl.errors import CheckpointError, DatasetError
from cprfl.evaluation import Evaluation, evaluate, write_predictions
from cprfl.experiment import Experiment
from cprfl.predictor import load_model
from cprfl.training.loop import predict
from pipelines.preprocess import Prepared

EVALUATION, PREDICTIONS = "evaluation.json", "predictions.parquet"


def evaluate_checkpoint(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> Evaluation:
    """Write ``evaluation.json`` and ``predictions.parquet`` of the test split into the experiment's folder.

    Raises:
        CheckpointError: where the checkpoint was trained on other classes or another encoder.
        DatasetError: where there is no test split.
    """
    model, info = load_model(checkpoint)
    manifest, store = prepared.read_manifest(), prepared.open_features()
    if tuple(info.class_names) != manifest.class_names:
        differing = sorted(set(info.class_names) ^ set(manifest.class_names)) or "their order"
        raise CheckpointError(f"{checkpoint}: trained on other classes than the data set's: {differing}; train again")
    if info.encoder_fingerprint != store.description["encoder_fingerprint"]:
        raise CheckpointError(f"{checkpoint}: trained on features of another encoder than {store.path}; train again")
    test = manifest.split(TEST)
    if not len(test):
        raise DatasetError("dataset.splits: no test image; give a split named test to evaluate on")
    wanted = {image_id: row for row, image_id in enumerate(test.image_ids)}
    logits_NC = torch.full((len(test), len(manifest.class_names)), torch.nan)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for shard in store.shards():
        plain = [i for i, image_id in enumerate(shard.image_ids) if shard.views[i] == 0 and image_id in wanted]
        if plain:
            rows = [wanted[shard.image_ids[i]] for i in plain]
            logits_NC[rows] = predict(model, iter(torch.from_numpy(shard.grid[plain]).split(64)), device)
    scores = logits_NC.numpy()
    result = evaluate(scores, test.targets(), manifest.class_names, class_counts(manifest), manifest.groups)
    write_predictions(experiment.folder / PREDICTIONS, test.image_ids, scores, manifest.class_names)
    result.write(experiment.folder / EVALUATION, protocol=experiment.protocol, images=len(test), epoch=info.epoch)
    return result
