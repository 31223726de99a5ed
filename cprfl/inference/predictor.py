"""From images to a score per class: a checkpoint and the encoder whose features it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cprfl.encoders.adapters import add_adapters, load_moved_state
from cprfl.encoders.base import ImageEncoder
from cprfl.encoders.weights import load_into
from cprfl.errors import CheckpointError, WeightsError
from cprfl.experiment import experiment_of
from cprfl.models.base import Method
from cprfl.training.checkpoint import CheckpointInfo, load_facts, load_info, load_tower, load_weights


def load_method(folder: Path) -> tuple[Method, CheckpointInfo]:
    """The trained classifier of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: where there is none, or its weights do not fit its description.
    """
    info, weights = load_info(folder), load_weights(folder)
    method = experiment_of(info, folder).model.build(load_facts(folder))
    try:
        load_into(method, weights, str(folder), "the model that its checkpoint.json describes")
    except WeightsError as error:
        raise CheckpointError(f"{error}; train again") from None
    return method.eval(), info


def load_encoder(
    folder: Path, info: CheckpointInfo, encoder_weights: Path | None = None, cache_dir: Path | None = None
) -> ImageEncoder:
    """The image encoder of a checkpoint, as training left it.

    Args:
        folder: of the checkpoint.
        info: its description.
        encoder_weights: safetensors with the encoder's whole state; without it the encoder is built as configured, from
            its tag, file or cache, and brought to what the checkpoint holds of it.
        cache_dir: where encoders trained here are kept.

    Raises:
        CheckpointError: where the encoder at hand is not the one that the training began with.
    """
    experiment = experiment_of(info, folder)
    config, training = experiment.encoder, experiment.tower_training
    whole = training is not None and training.backbone == "finetune"
    encoder = config.build(cache_dir or experiment.cache_dir, loaded=encoder_weights is None and not whole)
    if encoder_weights is not None:
        if training is not None and training.backbone == "adapter":
            add_adapters(encoder, training.finetune.adapter_width)
        encoder.load_state_dict(load_file(encoder_weights))
        return encoder.eval().requires_grad_(False)
    moved_here = experiment.train.moves_tower
    if moved_here and not whole:
        _check_encoder(encoder, info, folder)
    if training is not None:
        width = training.finetune.adapter_width
        load_moved_state(encoder, training.backbone, width, load_tower(folder), str(folder))
    if not moved_here:
        _check_encoder(encoder, info, folder)
    return encoder


def _check_encoder(encoder: ImageEncoder, info: CheckpointInfo, folder: Path) -> None:
    if encoder.fingerprint() != info.encoder_fingerprint:
        raise CheckpointError(f"{folder}: trained on features of another encoder than the one at hand")


class Predictor:
    """Scores of images.

    Args:
        method: gives logits of encoded images.
        encoder: encodes them.
        class_names: of the scores' columns.
    """

    def __init__(self, method: Method, encoder: ImageEncoder, class_names: Sequence[str]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.method, self.encoder = method.to(self.device).eval(), encoder.to(self.device).eval()
        self.class_names = tuple(class_names)

    @classmethod
    def load(cls, checkpoint: Path, encoder_weights: Path | None = None, cache_dir: Path | None = None) -> Predictor:
        """Load a checkpoint and its encoder; the arguments are those of `load_encoder`."""
        method, info = load_method(checkpoint)
        return cls(method, load_encoder(checkpoint, info, encoder_weights, cache_dir), info.class_names)

    def predict(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Probabilities, float32 [n, c]: of the mean logits of each image's scored rows (``encoder.crops``)."""
        transform = self.encoder.transform
        size = max(1, self.encoder.config.batch_size // transform.crops)
        batches = (
            torch.cat([transform.scored(image) for image in images[start : start + size]])
            for start in range(0, len(images), size)
        )
        logits_NKC = self.logits(batches).unflatten(0, (len(images), transform.crops))
        return logits_NKC.mean(dim=1).sigmoid().numpy()

    def logits(self, batches: Iterable[Tensor]) -> Tensor:
        """Logits, float32 [n, c] on the CPU, of n inputs of the encoder in batches [B, 3, H, W]: one row for each."""
        found = [torch.empty((0, len(self.class_names)))]
        with torch.inference_mode():
            for images_B3HW in batches:
                encoded = self.encoder(images_B3HW.to(self.device))
                halves = (features.half().float() for features in encoded)  # cached features are half
                found.append(self.method(*halves).float().cpu())
        return torch.cat(found)
