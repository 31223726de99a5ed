"""Augmentation on the fly, as the released CPRFL trains: Cutout and RandAugment on the decoded image."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from pydantic import Field

from cprfl.config import Config
from cprfl.torchvision_cpu import ensure_torchvision


class AugmentationConfig(Config):
    """``cutout``: side of the rectangle painted over, as a share of the image's sides; 0 for none. ``flip``: mirror
    half of the images. ``randaugment``: two random operations of torchvision's RandAugment."""

    cutout: float = Field(default=0.5, ge=0, le=1)
    flip: bool = False
    randaugment: bool = True


def augment(image: Image.Image, config: AugmentationConfig) -> Image.Image:
    """A random version of ``image``, drawn from torch's global random state."""
    if config.cutout > 0:
        image = _cutout(image, config.cutout)
    if config.flip and float(torch.rand(())) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.randaugment:
        ensure_torchvision()
        from torchvision.transforms.v2 import RandAugment

        image = RandAugment()(image)
    return image


def _cutout(image: Image.Image, share: float) -> Image.Image:
    """Paint a rectangle of a random colour, centred anywhere, cut off at the border."""
    x, y = float(torch.rand(())) * image.width, float(torch.rand(())) * image.height
    half_width, half_height = image.width * share / 2, image.height * share / 2
    colour = tuple(torch.randint(256, (3,)).tolist())
    image = image.copy()
    ImageDraw.Draw(image).rectangle((x - half_width, y - half_height, x + half_width, y + half_height), fill=colour)
    return image
