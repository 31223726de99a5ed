"""Images of every kind become upright RGB, and what is none is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cprfl.data.images import open_image
from cprfl.errors import UnreadableImageError


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 4), 40_000, dtype=np.uint16))
    else:
        image = Image.new("RGB", (4, 5), (200, 200, 200)).convert(mode)
    path = tmp_path / f"x.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    opened = open_image(str(path))
    assert (opened.mode, opened.size) == ("RGB", (4, 5))
    if mode not in ("1", "CMYK"):
        assert abs(np.asarray(opened).mean() - (155.6 if mode == "I;16" else 200)) < 5


def test_exif_orientation_is_applied_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "r.jpg", exif=exif)
    assert open_image(str(tmp_path / "r.jpg")).size == (4, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImageError):
        open_image(str(tmp_path / "r.jpg"))


def test_no_flipped_bit_ends_a_run(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 4), (9, 99, 199)).save(path, exif=exif)
    content = path.read_bytes()
    refused = 0
    for bit in range(8 * 120):  # EXIF and the first tables
        path.write_bytes(bytes([*content[: bit // 8], content[bit // 8] ^ (1 << bit % 8), *content[bit // 8 + 1 :]]))
        try:
            open_image(str(path))
        except UnreadableImageError:
            refused += 1
    assert refused
