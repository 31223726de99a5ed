"""What all image encoders share: grid features before pooling, a global feature, the transform, a fingerprint.

Shapes: B images, V grid cells (row by row), D channels of a cell, E channels of the global feature.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from cprfl.config import Config
from cprfl.data.feature_store.shards import ImageRows
from cprfl.data.files import fingerprint
from cprfl.torchvision_cpu import ensure_torchvision

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each colour

STATISTICS: dict[str, Statistics] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


_AS_BEFORE = {"crops": 1, "attention": "own"}  # later settings, with the values at which nothing is other than before


class Encoded(NamedTuple):
    """``grid_BVD`` is taken before pooling; ``global_BE`` is the tower's own summary of the image."""

    grid_BVD: Tensor
    global_BE: Tensor


class ImageEncoderConfig(Config):
    """Settings of every image encoder.

    ``resize``: squash the whole image into the square, or resize its shorter side and crop the centre (which loses
    objects at the edges). ``normalize``: colour statistics; ``none`` feeds [0, 1] as the released CPRFL does.
    ``pool``: average the grid to pool x pool cells. ``views``: 1 plain view and views - 1 augmented ones, of which
    training draws. ``crops``: what is scored, in evaluation, validation and prediction alike: the plain view (1), or
    the mean of the logits of five crops (5: the image is made 248/224 as large as the input, and cut at its four
    corners and its centre; CAPNET's test-time ensemble).
    ``num_workers``: copies of the encoder that extract features at the same time on Ray; 0 extracts in this process.
    Unless given it is 0 for a few thousand images where no cluster is named, and otherwise one per GPU, or where there
    is none one per CPU and at most eight per machine.
    """

    image_size: PositiveInt | None = None
    resize: Literal["squash", "crop"] = "squash"
    normalize: Literal["own", "clip", "imagenet", "none"] = "own"
    pool: PositiveInt | None = None
    views: int = Field(default=1, ge=1, le=122)  # with five crops, their numbers still fit into a byte
    crops: Literal[1, 5] = 1
    batch_size: PositiveInt = 32
    num_workers: NonNegativeInt | None = None

    @property
    def rows_per_image(self) -> ImageRows:
        """What a feature store holds of each image."""
        return ImageRows(self.views, self.crops)

    @abstractmethod
    def build(self, cache_dir: Path) -> ImageEncoder:
        """The frozen encoder, in evaluation mode; ``cache_dir`` is where weights made here are kept."""


@dataclass(frozen=True)
class Transform:
    """Makes the encoder's square input of an image.

    Attributes:
        size: of its sides, in pixels.
        resize: see `ImageEncoderConfig`.
        crops: what `scored` makes of an image; see `ImageEncoderConfig`.
    """

    size: int
    resize: Literal["squash", "crop"]
    crops: Literal[1, 5] = 1

    def __call__(self, image: Image.Image, view: int = 0, seed: int = 0) -> Tensor:
        """The input, uint8 [3, H, W].

        View 0 is the plain image; a further view is a random crop of at least half its area, flipped half the time,
        and follows from ``seed``.
        """
        if view > 0:
            image = _augment(image, torch.Generator().manual_seed(seed * 128 + view))
        functional = _torchvision_functional()
        cropped = functional.center_crop(self._resized(image, self.size), [self.size, self.size])
        pixels: Tensor = functional.pil_to_tensor(cropped)
        return pixels

    def scored(self, image: Image.Image) -> Tensor:
        """The K inputs, uint8 [K, 3, H, W], whose logits are averaged: the plain view, or the crops."""
        if self.crops == 1:
            return self(image)[None]
        functional = _torchvision_functional()
        larger = self._resized(image, round(self.size * 248 / 224))
        crops = functional.five_crop(larger, [self.size, self.size])
        return torch.stack([functional.pil_to_tensor(crop) for crop in crops])

    def _resized(self, image: Image.Image, side: int) -> Image.Image:
        """The image with both of its sides, or its shorter one, so long."""
        width = height = side
        if self.resize == "crop":
            scale = side / min(image.size)
            width, height = (max(side, round(own * scale)) for own in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)


class ImageEncoder(nn.Module):
    """An image tower that gives the grid before pooling and the global feature.

    Args:
        config: its settings.
        image_size: side of the square input, in pixels.
        statistics: mean and standard deviation of each colour.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageEncoderConfig, image_size: int, statistics: Statistics) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.transform = Transform(image_size, config.resize, config.crops)
        self.adapters: nn.ModuleList | None = None  # of `cprfl.encoders.adapters`
        self.statistics = statistics if config.normalize == "own" else STATISTICS[config.normalize]
        self.register_buffer("mean", torch.tensor(self.statistics[0]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.statistics[1]).view(3, 1, 1), persistent=False)

    @abstractmethod
    def encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Grid features [B, D, h, w] and global features [B, E] of normalised images."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The tower's blocks, or stages, in order: adapters stand beside them."""

    @abstractmethod
    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass from now on, for less memory."""

    def forward(self, images_B3HW: Tensor) -> Encoded:
        """Encode images as `transform` makes them, or of floats in [0, 1]."""
        if images_B3HW.dtype == torch.uint8:
            images_B3HW = images_B3HW.float().div_(255)
        grid_BDhw, global_BE = self.encode((images_B3HW - self.mean) / self.std)
        if self.config.pool is not None:
            grid_BDhw = F.adaptive_avg_pool2d(grid_BDhw, self.config.pool)
        return Encoded(grid_BDhw.flatten(2).transpose(1, 2), global_BE)

    @property
    def transform_description(self) -> dict[str, Any]:
        """All that determines what `transform` and the normalisation make of an image."""
        return {"size": self.image_size, "resize": self.config.resize, "statistics": self.statistics}

    def fingerprint(self) -> str:
        """Changes with the settings, the transform and every weight."""
        ignored = {"batch_size", "num_workers", "pretrained", "weights"}  # the digest says which weights these are
        settings = self.config.model_dump(mode="json", exclude=ignored)
        settings = {name: value for name, value in settings.items() if (name, value) not in _AS_BEFORE.items()}
        return fingerprint([settings, self.transform_description, weights_digest(self)])


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def freeze(encoder: ImageEncoder) -> ImageEncoder:
    """Evaluation mode, no gradients."""
    return encoder.eval().requires_grad_(False)


def _torchvision_functional() -> Any:
    """torchvision's transforms as functions; importing them takes a second."""
    ensure_torchvision()
    from torchvision.transforms.v2 import functional

    return functional


def _augment(image: Image.Image, generator: torch.Generator) -> Image.Image:
    area, aspect, left, top, flip = torch.rand(5, generator=generator).tolist()
    scale, ratio = (0.5 + 0.5 * area) ** 0.5, (3 / 4) ** (1 - 2 * aspect)
    width = min(image.width, round(image.width * scale * ratio**0.5))
    height = min(image.height, round(image.height * scale / ratio**0.5))
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    cropped = image.crop((x, y, x + max(width, 1), y + max(height, 1)))
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else cropped
