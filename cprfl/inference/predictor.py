"""From images to a score per class: a checkpoint and the encoder whose features it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cprfl.data.tensor_files import read_tensors
from cprfl.encoders.adapters import add_adapters, load_moved_state
from cprfl.encoders.base import Encoded, ImageEncoder
from cprfl.encoders.weights import load_into
from cprfl.errors import CheckpointError, WeightsError
from cprfl.evaluation.decisions import Decisions
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
        encoder_weights: the encoder's whole state (`cprfl.data.tensor_files`); without it the encoder is built as
            configured, from its tag, file or cache, and brought to what the checkpoint holds of it.
        cache_dir: where encoders trained here are kept.

    Raises:
        CheckpointError: where the encoder at hand is not the one that the training began with, or is damaged.
    """
    experiment = experiment_of(info, folder)
    config, training = experiment.encoder, experiment.tower_training
    whole = training is not None and training.backbone == "finetune"
    encoder = config.build(cache_dir or experiment.cache_dir, loaded=encoder_weights is None and not whole)
    if encoder_weights is not None:
        if training is not None and training.backbone == "adapter":
            add_adapters(encoder, training.finetune.adapter_width)
        load_into(encoder, _own_weights(encoder_weights), str(encoder_weights), "the encoder of its checkpoint")
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


def _own_weights(path: Path) -> dict[str, Tensor]:
    return read_tensors(path, CheckpointError, "`cprfl rollback CONFIG`, or train again")[0]


def _check_encoder(encoder: ImageEncoder, info: CheckpointInfo, folder: Path) -> None:
    if encoder.fingerprint() != info.encoder_fingerprint:
        raise CheckpointError(f"{folder}: trained on features of another encoder than the one at hand")


class Predictor:
    """Scores of images.

    Args:
        method: gives logits of encoded images.
        encoder: encodes them.
        decisions: name the classes, and say what their logits mean.
    """

    def __init__(self, method: Method, encoder: ImageEncoder, decisions: Decisions) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.method, self.encoder = method.to(self.device).eval(), encoder.to(self.device).eval()
        self.decisions = decisions

    @classmethod
    def load(cls, checkpoint: Path, encoder_weights: Path | None = None, cache_dir: Path | None = None) -> Predictor:
        """Load a checkpoint with its decisions, and its encoder; the arguments are those of `load_encoder`."""
        method, info = load_method(checkpoint)
        decisions = Decisions.read(checkpoint, info.class_names)
        return cls(method, load_encoder(checkpoint, info, encoder_weights, cache_dir), decisions)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the scores' columns."""
        return self.decisions.class_names

    @property
    def batch_size(self) -> int:
        """Images whose scored rows are encoded at once."""
        return max(1, self.encoder.config.batch_size // self.encoder.transform.crops)

    def predict(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Calibrated probabilities, float32 [n, c], of images of any size."""
        found = [np.empty((0, len(self.class_names)), dtype=np.float32)]
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            found.append(self.probabilities(torch.stack([self.encoder.transform.scored(image) for image in batch])))
        return np.concatenate(found)

    def probabilities(self, pixels_NK3HW: Tensor) -> np.ndarray:
        """Calibrated probabilities, float32 [n, c], of what ``encoder.transform.scored`` makes of n images."""
        return self.decisions.probabilities(self.mean_logits(pixels_NK3HW).numpy())

    def mean_logits(self, pixels_NK3HW: Tensor) -> Tensor:
        """Logits, float32 [n, c]: of n images, the mean over the K rows that are scored of each (``encoder.crops``)."""
        rows_B3HW = pixels_NK3HW.flatten(0, 1)
        logits_BC = self.logits(rows_B3HW.split(self.encoder.config.batch_size))
        return logits_BC.unflatten(0, pixels_NK3HW.shape[:2]).mean(dim=1)

    @property
    def looks_somewhere(self) -> bool:
        """Whether the method tells the cells of an image apart."""
        size = self.encoder.image_size
        return self.attention(torch.zeros(1, 3, size, size, dtype=torch.uint8)) is not None

    def attention(self, plain_N3HW: Tensor) -> Tensor | None:
        """Where the method looks for each class in plain views of n images: see `Method.attention`; on the CPU."""
        with torch.inference_mode():
            weights_NCV = self.method.attention(*self.encode(plain_N3HW))
        return None if weights_NCV is None else weights_NCV.cpu()

    def logits(self, batches: Iterable[Tensor]) -> Tensor:
        """Logits, float32 [n, c] on the CPU, of n inputs of the encoder in batches [B, 3, H, W]: one row for each."""
        found = [torch.empty((0, len(self.class_names)))]
        with torch.inference_mode():
            for images_B3HW in batches:
                found.append(self.method(*self.encode(images_B3HW)).float().cpu())
        return torch.cat(found)

    @torch.inference_mode()
    def encode(self, images_B3HW: Tensor) -> Encoded:
        """What the method sees of inputs of the encoder: rounded to half precision, as cached features are."""
        grid_BVD, global_BE = self.encoder(images_B3HW.to(self.device))
        return Encoded(grid_BVD.half().float(), global_BE.half().float())
