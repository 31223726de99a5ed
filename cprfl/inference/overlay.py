"""Weights of an image's cells drawn over the image: one hue over grey, the stronger the more weight."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cprfl.inference.attention import WHOLE, Part

_HUE = np.array([255.0, 112.0, 0.0], dtype=np.float32)  # orange, which no grey is mistaken for
_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_DARKEST, _BRIGHTEST = 30.0, 170.0  # grey of the picture below, so that the hue is the brightest there is
_UNSEEN = 0.4  # brightness of what the encoder did not see
_STRONGEST = 0.92  # share of the hue where it is full
_SHADE = 0.35  # how much of the picture's light and dark stays below the hue
_STEEPNESS = 1.5  # above 1, what every cell has is no wash over the picture
_FULL = 3.0  # times the weight of all cells alike


def overlay(image: Image.Image, weights_HW: np.ndarray, seen: Part = WHOLE) -> Image.Image:
    """The image in grey, coloured where the weight is, of its own size.

    The hue is full at the largest weight, or at three times what every cell has where all weigh alike, if no cell
    weighs as much: so weights that say little look so.

    Args:
        image: upright RGB, as `cprfl.data.images.open_image` gives it, or smaller.
        weights_HW: of the cells, of sum 1.
        seen: the part of the image that the cells cover; what is outside of it is darkened.
    """
    strength_HW = _upsampled(weights_HW / max(float(weights_HW.max()), _FULL / weights_HW.size), image.size, seen)
    light_HW = np.asarray(image, dtype=np.float32) @ _LUMA / 255
    grey_HW = _DARKEST + (_BRIGHTEST - _DARKEST) * light_HW
    left, top, right, bottom = _pixels(image.size, seen)
    brightness_HW = np.full(grey_HW.shape, _UNSEEN, dtype=np.float32)
    brightness_HW[top:bottom, left:right] = 1.0
    share_HW1 = _STRONGEST * strength_HW[..., None] ** _STEEPNESS
    hue_HW3 = _HUE * (1 - _SHADE + _SHADE * light_HW)[..., None]
    mixed_HW3 = (grey_HW * brightness_HW)[..., None] * (1 - share_HW1) + hue_HW3 * share_HW1
    return Image.fromarray(mixed_HW3.astype(np.uint8))


def _upsampled(values_HW: np.ndarray, size: tuple[int, int], seen: Part) -> np.ndarray:
    """Cells, smoothly enlarged to where they lie in an image of this size, float32 in [0, 1]; 0 elsewhere."""
    left, top, right, bottom = _pixels(size, seen)
    cells = Image.fromarray(values_HW.astype(np.float32))
    enlarged = cells.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    found = np.zeros((size[1], size[0]), dtype=np.float32)
    found[top:bottom, left:right] = np.asarray(enlarged).clip(0, 1)
    return found


def _pixels(size: tuple[int, int], seen: Part) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part, in pixels, one of each at least."""
    width, height = size
    left, top = round(seen.left * width), round(seen.top * height)
    return left, top, max(left + 1, round(seen.right * width)), max(top + 1, round(seen.bottom * height))
