"""Images by URI: opened, checked and brought to RGB."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from cprfl.data import filesystems, storage, synthetic
from cprfl.data.files import write_aside
from cprfl.errors import BadImagesError, StorageError, UnreadableImageError


@dataclass(frozen=True)
class BadImage:
    """An image of the manifest that cannot be used, and why."""

    image_id: str
    uri: str
    reason: str


def open_image(uri: str) -> Image.Image:
    """Open and fully decode an image, turn it as its EXIF orientation says, and convert it to RGB.

    Raises:
        UnreadableImageError: where it is missing, truncated, no image or implausibly large.
        StorageError: where the storage cannot be reached: no mistake of this image.
    """
    if uri.startswith(f"{synthetic.SCHEME}:"):
        return synthetic.render_uri(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            source = io.BytesIO(storage.read_bytes(uri)) if filesystems.is_remote(uri) else filesystems.local_path(uri)
            with Image.open(source) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise UnreadableImageError("file not found") from None
    except StorageError:
        raise
    except Exception as error:  # Pillow's decoders and its reader of EXIF raise whatever a flipped bit leads them to
        raise UnreadableImageError(str(error) or type(error).__name__) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB: 16-bit grey is scaled down rather than clipped, transparency is laid over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image.convert("RGB")


def image_stamps(uris: Sequence[str]) -> list[tuple[int, ...]]:
    """What tells a changed file from the one encoded before; nothing for a scene that its URI describes wholly."""
    rendered = [uri.startswith(f"{synthetic.SCHEME}:") for uri in uris]
    files = iter(storage.stamps([uri for uri, is_rendered in zip(uris, rendered, strict=True) if not is_rendered]))
    return [() if is_rendered else next(files) for is_rendered in rendered]


def report_bad_images(bad: Sequence[BadImage], total: int, report: Path) -> BadImagesError:
    """Write all bad images to the CSV file ``report``; the error to raise names how many and the first ten."""
    with write_aside(report) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "uri", "reason"])
        writer.writerows([item.image_id, item.uri, item.reason] for item in bad)
    shown = [f"  {item.image_id}: {item.reason} ({item.uri})" for item in bad[:10]]
    more = [f"  ... and {len(bad) - 10} more"] if len(bad) > 10 else []
    noun = "image is" if len(bad) == 1 else "images are"
    return BadImagesError(
        "\n".join(
            [
                f"{len(bad)} of {total} {noun} missing or do not decode (all: {report}):",
                *shown,
                *more,
                "Mend them, or go on without them with --set dataset.on_bad_image=skip",
            ]
        )
    )
