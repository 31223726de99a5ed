"""What all image encoders share: grid features before pooling, a global feature, the transform, a fingerprint.

Shapes: B images, V grid cells (row by row), D channels of a cell, E channels of the global feature.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from cprfl.config import Config
from cprfl.data.feature_store.shards import ImageRows
from cprfl.data.files import fingerprint
from cprfl.data.images import DEFAULT_READING, Reading
from cprfl.encoders.recomputing import recompute_activations
from cprfl.errors import ConfigError
from cprfl.torchvision_cpu import ensure_torchvision

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each colour
Colours = Annotated[tuple[FiniteFloat, ...], Field(min_length=3, max_length=3)]

STATISTICS: dict[str, Statistics] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


# Later settings, with the values at which nothing is other than before.
_AS_BEFORE = {"crops": 1, "attention": "own", "statistics": None, "value_range": None}


class Encoded(NamedTuple):
    """``grid_BVD`` is taken before pooling; ``global_BE`` is the tower's own summary of the image."""

    grid_BVD: Tensor
    global_BE: Tensor


class ImageEncoderConfig(Config):
    """Settings of every image encoder.

    ``resize``: squash the whole image into the square, or resize its shorter side and crop the centre (which loses
    objects at the edges). ``normalize``: colour statistics; ``none`` feeds [0, 1] as the released CPRFL does.
    ``statistics``: mean and standard deviation of each colour, where they are none of those.
    ``pool``: average the grid to pool x pool cells. ``views``: 1 plain view and views - 1 augmented ones, of which
    training draws. ``crops``: what is scored, in evaluation, validation and prediction alike: the plain view (1), or
    the mean of the logits of five crops (5: the image is made 248/224 as large as the input, and cut at its four
    corners and its centre; CAPNET's test-time ensemble).
    ``value_range``: the values that become black and white in images of 16 bits, 32 bits and floats; without it 16 bits
    are scaled by their full range, and the others are refused (`cprfl.data.deep_images`). ``max_pixels``: a larger
    image is refused before it is decoded, which takes four bytes a pixel.
    ``num_workers``: copies of the encoder that extract features at the same time on Ray; 0 extracts in this process.
    Unless given it is 0 for a few thousand images where no cluster is named, and otherwise one per GPU, or where there
    is none one per CPU and at most eight per machine.
    """

    image_size: PositiveInt | None = None
    resize: Literal["squash", "crop"] = "squash"
    normalize: Literal["own", "clip", "imagenet", "none"] = "own"
    statistics: tuple[Colours, Colours] | None = None
    pool: PositiveInt | None = None
    views: int = Field(default=1, ge=1, le=122)  # with five crops, their numbers still fit into a byte
    crops: Literal[1, 5] = 1
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None
    max_pixels: PositiveInt = Reading.max_pixels
    batch_size: PositiveInt = 32
    num_workers: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Self:
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range: black ({self.value_range[0]:g}) must lie below white")
        if self.statistics is not None and self.normalize != "own":
            raise ValueError(f"statistics and normalize: {self.normalize} contradict each other; leave one of them out")
        if self.statistics is not None and min(self.statistics[1]) <= 0:
            raise ValueError("statistics: a standard deviation must be above 0")
        return self

    @property
    def reading(self) -> Reading:
        """How image files are read."""
        return Reading(self.max_pixels, self.value_range)

    @property
    def rows_per_image(self) -> ImageRows:
        """What a feature store holds of each image."""
        return ImageRows(self.views, self.crops)

    @abstractmethod
    def build(self, cache_dir: Path, *, loaded: bool = True) -> ImageEncoder:
        """The frozen encoder, in evaluation mode.

        Args:
            cache_dir: where weights made here are kept.
            loaded: whether to give it its weights; those of one that is to get others from elsewhere are random, while
                its transform is the same.
        """


@dataclass(frozen=True)
class Resampling:
    """How a model's own transform resizes.

    Attributes:
        interpolation: Pillow's name of it, in small letters.
        crop: the side of the square that is cut out, by the shorter side of the resized image.
    """

    interpolation: str = "bicubic"
    crop: float = 1.0


@dataclass(frozen=True)
class Transform:
    """Makes the encoder's square input of an image.

    Attributes:
        size: of its sides, in pixels.
        resize: see `ImageEncoderConfig`.
        crops: what `scored` makes of an image; see `ImageEncoderConfig`.
        reading: how files are read, for whoever opens the images.
        own: the interpolation and the share of the image that is cropped, as the model was trained.
    """

    size: int
    resize: Literal["squash", "crop"]
    crops: Literal[1, 5] = 1
    reading: Reading = DEFAULT_READING
    own: Resampling = Resampling()

    def __call__(self, image: Image.Image, view: int = 0, seed: int = 0) -> Tensor:
        """The input, uint8 [3, H, W].

        View 0 is the plain image; a further view is a random crop of at least half its area, flipped half the time,
        and follows from ``seed``.
        """
        if view > 0:
            image = _augment(image, torch.Generator().manual_seed(seed * 128 + view))
        functional = _torchvision_functional()
        side = self.size if self.resize == "squash" else math.floor(self.size / self.own.crop)
        cropped = functional.center_crop(self._resized(image, side), [self.size, self.size])
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
        return image.resize((width, height), Image.Resampling[self.own.interpolation.upper()])


class ImageEncoder(nn.Module):
    """An image tower that gives the grid before pooling and the global feature.

    Args:
        config: its settings.
        image_size: side of the square input, in pixels.
        statistics: mean and standard deviation of each colour, as the model was trained.
        resampling: how images are resized, as it was trained; with ``normalize: own`` it is done so.
    """

    mean: Tensor
    std: Tensor
    channels_last: bool = False  # whether the grids between the blocks are [B, h, w, D]

    def __init__(
        self, config: ImageEncoderConfig, image_size: int, statistics: Statistics, resampling: Resampling = Resampling()
    ) -> None:
        super().__init__()
        own = config.normalize == "own"
        self.config = config
        self.image_size = image_size
        self.transform = Transform(
            image_size, config.resize, config.crops, config.reading, resampling if own else Resampling()
        )
        self.adapters: nn.ModuleList | None = None  # of `cprfl.encoders.adapters`
        self.statistics = config.statistics or (statistics if own else STATISTICS[config.normalize])
        self.register_buffer("mean", torch.tensor(self.statistics[0]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.statistics[1]).view(3, 1, 1), persistent=False)

    @abstractmethod
    def encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Grid features [B, D, h, w] and global features [B, E] of normalised images."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The tower's blocks, or stages, in order: adapters stand beside them."""

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass from now on, for less memory.

        Raises:
            ConfigError: where the tower has no blocks that we know.
        """
        if not self.blocks():
            model = self.config.model_dump()["model"]
            raise ConfigError(f"train.finetune.gradient_checkpointing: {model} has no blocks; set it to false")
        recompute_activations(self.blocks())

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
        description = {"size": self.image_size, "resize": self.config.resize, "statistics": self.statistics}
        own = self.transform.own
        return description if own == Resampling() else description | {"resampling": asdict(own)}

    def fingerprint(self) -> str:
        """Changes with the settings, the transform and every weight."""
        # The digest says which weights these are, and what is refused has no features.
        ignored = {"batch_size", "num_workers", "max_pixels", "pretrained", "weights"}
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
