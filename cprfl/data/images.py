"""Images by URI: opened, checked and brought to RGB.

Pillow's own limit on an image's size holds for a whole process and all its threads. It is lifted here, once; `to_rgb`
compares each image's size with the limit of its own reader before a pixel is decoded.
"""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from cprfl.data import filesystems, packed, storage, synthetic
from cprfl.data.deep_images import grey_levels, levels_of
from cprfl.data.files import write_aside
from cprfl.errors import BadImagesError, StorageError, UnreadableImageError
from cprfl.plain import no_formula

Image.MAX_IMAGE_PIXELS = None
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read: Pillow knows thirty more, one of which has Ghostscript run what is in the file."""


@dataclass(frozen=True)
class BadImage:
    """An image of the manifest that cannot be used, and why."""

    image_id: str
    uri: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """How image files are read; the settings of the same names in `cprfl.encoders.base.ImageEncoderConfig`.

    Attributes:
        max_pixels: of the largest image that is decoded.
        value_range: the values that become black and white in images of more than 8 bits.
    """

    max_pixels: int = 200_000_000
    value_range: tuple[float, float] | None = None


DEFAULT_READING = Reading()


class TooManyPixelsError(UnreadableImageError):
    """An image is larger than what is decoded.

    Attributes:
        width: in pixels.
        height: likewise.
        limit: the most pixels that there may be.
    """

    def __init__(self, width: int, height: int, limit: int) -> None:
        super().__init__(
            f"{width} x {height} pixels are more than encoder.max_pixels ({limit}); raise it, or cut the image up"
        )
        self.width, self.height, self.limit = width, height, limit

    def __reduce__(self) -> tuple[type[TooManyPixelsError], tuple[int, int, int]]:
        return TooManyPixelsError, (self.width, self.height, self.limit)


def open_image(uri: str, reading: Reading = DEFAULT_READING) -> Image.Image:
    """Open and fully decode an image, turn it as its EXIF orientation says, and convert it to RGB.

    Of several frames or pages it is the first.

    Raises:
        UnreadableImageError: where it is missing, truncated, no image or none that ``reading`` says how to read.
        StorageError: where the storage cannot be reached: no mistake of this image.
    """
    if _is_rendered(uri):
        return synthetic.render_uri(uri)
    try:
        source = _source(uri)
        with Image.open(source, formats=FORMATS) as image:
            return to_rgb(image, reading)
    except FileNotFoundError:
        raise UnreadableImageError("file not found") from None
    except (StorageError, UnreadableImageError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(f"no image that Pillow can read: {_beginning(source)}") from None
    except Exception as error:  # Pillow's decoders and its reader of EXIF raise whatever a flipped bit leads them to
        raise UnreadableImageError(str(error) or type(error).__name__) from None


def to_rgb(image: Image.Image, reading: Reading = DEFAULT_READING) -> Image.Image:
    """Upright RGB, transparency laid over white; grey of more than 8 bits is scaled (`cprfl.data.deep_images`).

    A large image is copied as rarely as can be: ``image`` itself may be turned, and may be what comes back.

    Raises:
        UnreadableImageError: where it is too large, or ``reading`` does not say what its values mean.
    """
    if image.width * image.height > reading.max_pixels:
        raise TooManyPixelsError(image.width, image.height, reading.max_pixels)
    levels = levels_of(image, reading.value_range)
    ImageOps.exif_transpose(image, in_place=True)
    if levels is not None:
        image = grey_levels(image, levels)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None  # it would be where the image were changed in place
        return converted
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image if image.mode == "RGB" else image.convert("RGB")


def image_stamps(uris: Sequence[str]) -> list[tuple[int, ...]]:
    """What tells a changed file from the one encoded before; nothing for a scene that its URI describes wholly.

    An image inside of a larger file has that file's stamp.
    """
    files = [packed.container(uri) if packed.is_packed(uri) else uri for uri in uris]
    asked = list(dict.fromkeys(file for file in files if not _is_rendered(file)))
    stamps = dict(zip(asked, storage.stamps(asked), strict=True))
    return [stamps.get(file, ()) for file in files]


def report_bad_images(bad: Sequence[BadImage], total: int, report: Path) -> BadImagesError:
    """Write all bad images to the CSV file ``report``, by id; the error to raise names how many and the first ten."""
    bad = sorted(bad, key=lambda item: item.image_id)
    with write_aside(report) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "uri", "reason"])
        writer.writerows(map(no_formula, (item.image_id, item.uri, item.reason)) for item in bad)
    shown = [f"  {item.image_id}: {item.reason} ({item.uri})" for item in bad[:10]]
    more = [f"  ... and {len(bad) - 10} more"] if len(bad) > 10 else []
    noun = "image" if total == 1 else "images"
    verbs = "is missing or does not decode" if len(bad) == 1 else "are missing or do not decode"
    return BadImagesError(
        "\n".join(
            [
                f"{len(bad)} of {total} {noun} {verbs} (all: {report}):",
                *shown,
                *more,
                "Mend them, or go on without them with --set dataset.on_bad_image=skip",
            ]
        )
    )


def _is_rendered(uri: str) -> bool:
    return uri.startswith(f"{synthetic.SCHEME}:")


def _source(uri: str) -> Path | io.BytesIO:
    """A file to open, which is neither empty nor something to wait for, such as a pipe; or a remote one's bytes."""
    if packed.is_packed(uri):
        content = packed.read_packed(uri)
    elif filesystems.is_remote(uri):
        content = storage.read_bytes(uri)
    else:
        path = filesystems.local_path(uri)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
            raise UnreadableImageError(f"{kind}, not a file")
        if not found.st_size:
            raise UnreadableImageError("an empty file")
        return path
    if not content:
        raise UnreadableImageError("an empty file")
    return io.BytesIO(content)


def _beginning(source: Path | io.BytesIO) -> str:
    if isinstance(source, io.BytesIO):
        head = source.getvalue()[:24]
    else:
        with source.open("rb") as file:
            head = file.read(24)
    kind = "a TIFF file of another pixel type; convert it to 8 bits, " if head[:4] in (b"II*\0", b"MM\0*") else ""
    return f"{kind}the file begins with {head!r}"
