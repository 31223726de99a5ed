"""A trained model as one module: from pixels to what is found in them, for exports that run without this package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from cprfl.encoders.base import Transform
from cprfl.errors import ConfigError
from cprfl.inference.predictor import Predictor

INPUT, OUTPUTS = "images", ("logits", "probabilities", "found")
_LARGER = 248 / 224  # side of the square that five crops are cut from, as `Transform.scored` has it


class Deployed(NamedTuple):
    """What an exported model gives, each [N, C]: logits, calibrated probabilities, whether they reach the threshold."""

    logits_NC: Tensor
    probabilities_NC: Tensor
    found_NC: Tensor


class Deployment(nn.Module):
    """Encoder with its normalisation, method, calibration and thresholds.

    Args:
        predictor: whose scores it gives; its modules are copied, on the CPU.

    Raises:
        ConfigError: where images of different shapes would have to be cut into five crops.
    """

    slope_C: Tensor
    intercept_C: Tensor
    threshold_C: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        transform = predictor.encoder.transform
        if transform.crops != 1 and transform.resize == "crop":
            raise ConfigError(
                "encoder.crops=5 with encoder.resize=crop cuts images of every shape, and a graph takes one shape; "
                "set encoder.crops to 1, or encoder.resize to squash"
            )
        self.transform = transform
        self.encoder = copy.deepcopy(predictor.encoder).cpu()
        self.method = copy.deepcopy(predictor.method).cpu()
        decisions = predictor.decisions
        self.register_buffer("slope_C", torch.tensor(decisions.slope_C, dtype=torch.float32))
        self.register_buffer("intercept_C", torch.tensor(decisions.intercept_C, dtype=torch.float32))
        self.register_buffer("threshold_C", torch.tensor(decisions.threshold_C, dtype=torch.float32))
        self.eval().requires_grad_(False)

    def forward(self, images_N3HW: Tensor) -> Deployed:
        """Scores of images [N, 3, H, W] of floats in [0, 1], as `as_input` makes them."""
        crops = self._crops(images_N3HW)
        logits_NC = torch.stack([self._logits(crop_N3HW) for crop_N3HW in crops]).mean(dim=0)
        probabilities_NC = torch.sigmoid(self.slope_C * logits_NC + self.intercept_C)
        return Deployed(logits_NC, probabilities_NC, probabilities_NC >= self.threshold_C)

    def _logits(self, images_N3HW: Tensor) -> Tensor:
        grid_NVD, global_NE = self.encoder(images_N3HW)
        logits_NC: Tensor = self.method(grid_NVD.half().float(), global_NE.half().float())  # as cached features are
        return logits_NC

    def _crops(self, images_N3HW: Tensor) -> list[Tensor]:
        """What is scored of each image: itself, or its four corners and its centre, as `Transform.scored` cuts them."""
        if self.transform.crops == 1:
            return [images_N3HW]
        size, larger = self.transform.size, input_transform(self.transform).size
        far, middle = larger - size, round((larger - size) / 2.0)
        corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
        return [images_N3HW[:, :, top : top + size, left : left + size] for top, left in corners]


def input_transform(transform: Transform) -> Transform:
    """What makes the exported model's input of an image; of five crops, the larger square that they are cut from."""
    if transform.crops == 1:
        return transform
    return replace(transform, size=round(transform.size * _LARGER), crops=1)


def as_input(transform: Transform, images: Sequence[Image.Image]) -> Tensor:
    """What the exported model takes: float32 [N, 3, H, W] in [0, 1]."""
    wanted = input_transform(transform)
    return torch.stack([wanted(image) for image in images]).float().div_(255)
