"""Grey images of more than 8 bits: which of their values are black and white.

Pillow clips such values when it converts them, which turns a float image in [0, 1] black and most 16-bit ones white.
16 bits without a sign say themselves what white is. What the values of float and 32-bit images mean depends on who
wrote them, so those are scaled by a setting or refused. Colour of 16 bits never gets here: Pillow gives its upper 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, TiffImagePlugin

from cprfl.errors import UnreadableImageError

_FULL = (0, 65535)


@dataclass(frozen=True)
class Levels:
    """How values become grey.

    Attributes:
        black: the value that becomes 0; what lies beyond it does too.
        white: the value that becomes 255; below ``black`` where the file says that white is 0.
        is_unsigned: whether 32-bit values have no sign, which Pillow gives them.
    """

    black: float
    white: float
    is_unsigned: bool


def levels_of(image: Image.Image, value_range: tuple[float, float] | None) -> Levels | None:
    """The levels of an image as it was opened; nothing for one of 8 bits, which has no others.

    Args:
        image: not decoded yet, since only then it says how it is stored.
        value_range: the values that become black and white, if the user knows better than the file.

    Raises:
        UnreadableImageError: where neither the file nor the user says it, or the user does and Pillow has cut the
            values already.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        if value_range is not None and any(";16" in str(tile.args) for tile in getattr(image, "tile", ())):
            raise UnreadableImageError(
                "a colour image of 16 bits, of which Pillow reads the upper 8 only; convert it to 8 bits, or leave "
                "encoder.value_range out"
            )
        return None
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    black, white = value_range or _full_range(image, tags.get(TiffImagePlugin.BITSPERSAMPLE))
    if image.mode != "F" and white - black <= 1:
        raise UnreadableImageError(
            f"an image of whole numbers, of which encoder.value_range: [{black:g}, {white:g}] leaves black and white "
            "only; convert it to what the others are"
        )
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        black, white = white, black
    return Levels(black, white, is_unsigned=tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)) == (1,) and bool(tags))


def _full_range(image: Image.Image, bits: tuple[int, ...] | None) -> tuple[float, float]:
    if image.mode.startswith("I;16"):
        return (0, 4095) if bits == (12,) else _FULL
    if image.format == "PPM" and image.mode == "I":  # Pillow has brought these to 16 bits, whatever they had
        return _FULL
    values = np.asarray(image)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (np.nan, np.nan)
    fitting = next((f"[0, {white}]" for white in (1, 255) if low >= 0 and high <= white), "[BLACK, WHITE]")
    kind = "a float" if image.mode == "F" else "an integer"
    raise UnreadableImageError(
        f"{kind} image with values in [{low:g}, {high:g}]; set encoder.value_range: {fitting}, the values that are "
        "black and white"
    )


def grey_levels(image: Image.Image, levels: Levels) -> Image.Image:
    """The image in 8 bits of grey, transparent values white.

    Raises:
        UnreadableImageError: where values are NaN.
    """
    values = np.asarray(image)
    if image.mode == "I" and levels.is_unsigned:
        values = values.view(np.uint32)
    if (levels.black, levels.white) == _FULL:
        grey = (values // 257).astype(np.uint8)
    else:
        scaled: np.ndarray = values.astype(np.float64 if image.mode == "I" else np.float32)
        scaled -= levels.black
        scaled *= 255 / (levels.white - levels.black)
        if num_nan := int(np.isnan(scaled).sum()):
            raise UnreadableImageError(f"{num_nan} of {scaled.size} values are NaN; give them a value")
        grey = (scaled.clip(0, 255, out=scaled) + 0.5).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey)
