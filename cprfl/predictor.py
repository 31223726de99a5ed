"""From images to a score per class: a checkpoint and the encoder whose features it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from cprfl.config import validate
from cprfl.encoders.image import ImageEncoder
from cprfl.encoders.weights import load_into
from cprfl.errors import CheckpointError, ConfigError, WeightsError
from cprfl.experiment import Experiment
from cprfl.models.base import ModelInputs
from cprfl.training.checkpoint import ENCODER, CheckpointInfo, load_info, load_weights


def described(info: CheckpointInfo, folder: Path) -> Experiment:
    """The experiment that made a checkpoint.

    Raises:
        CheckpointError: where it has settings that are no longer known.
    """
    try:
        return validate(Experiment, info.experiment, source="its experiment")
    except ConfigError as error:
        raise CheckpointError(f"{folder}: written by another version of cprfl; train again ({error})") from None


def load_model(folder: Path) -> tuple[nn.Module, CheckpointInfo]:
    """The trained classifier of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: where there is none, or its weights do not fit its description.
    """
    info, weights = load_info(folder), load_weights(folder)
    experiment = described(info, folder)
    embeddings = (value for name, value in weights.items() if name.endswith("text_embeddings_CM"))
    text = next(embeddings, torch.zeros(len(info.class_names), 1))
    unknown = torch.zeros(info.feature_dim)
    model = experiment.model.build(ModelInputs(len(info.class_names), info.feature_dim, text, unknown, unknown))
    try:
        load_into(model, weights, str(folder), "the model that its checkpoint.json describes")
    except WeightsError as error:
        raise CheckpointError(f"{error}; train again") from None
    return model.eval(), info


class Predictor:
    """Scores of images.

    Args:
        model: gives logits of grid features.
        encoder: gives the features.
        class_names: of the scores' columns.
    """

    def __init__(self, model: nn.Module, encoder: ImageEncoder, class_names: Sequence[str]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.encoder = model.to(self.device).eval(), encoder.to(self.device).eval()
        self.class_names = tuple(class_names)

    @classmethod
    def load(cls, checkpoint: Path, encoder_weights: Path | None = None, cache_dir: Path | None = None) -> Predictor:
        """Load a checkpoint and its encoder.

        Args:
            checkpoint: its folder.
            encoder_weights: safetensors with the encoder's own state; without it the encoder is built as configured,
                from its tag, file or cache. A fine-tuned encoder's weights are in the checkpoint itself.
            cache_dir: where encoders trained here are kept.

        Raises:
            CheckpointError: where the encoder is not the one whose features the model was trained on.
        """
        model, info = load_model(checkpoint)
        experiment = described(info, checkpoint)
        config = experiment.encoder
        fine_tuned = checkpoint / ENCODER
        if fine_tuned.exists():
            encoder_weights = fine_tuned
        if encoder_weights is not None:
            config = config.model_copy(update={"pretrained": "random", "weights": None})
        encoder = config.build(cache_dir or experiment.cache_dir)
        if encoder_weights is not None:
            encoder.load_state_dict(load_file(encoder_weights))
        if not fine_tuned.exists() and encoder.fingerprint() != info.encoder_fingerprint:
            raise CheckpointError(f"{checkpoint}: trained on features of another encoder than the one at hand")
        return cls(model, encoder, info.class_names)

    def predict(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Probabilities, float32 [n, c]."""
        size = self.encoder.config.batch_size
        starts = range(0, len(images), size)
        batches = (
            torch.stack([self.encoder.transform(image) for image in images[start : start + size]]) for start in starts
        )
        return self.logits(batches).sigmoid().numpy()

    def logits(self, batches: Iterable[Tensor]) -> Tensor:
        """Logits, float32 [n, c] on the CPU, of batches of transformed images [B, 3, H, W]."""
        found = [torch.empty((0, len(self.class_names)))]
        with torch.inference_mode():
            for images_B3HW in batches:
                grid_BVD = self.encoder(images_B3HW.to(self.device)).grid_BVD
                found.append(self.model(grid_BVD.half().float()).float().cpu())  # cached features are half
        return torch.cat(found)
