"""Images of every kind become upright RGB, and what is none, or says not what it means, is refused by name."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from cprfl.data.images import Reading, image_stamps, open_image, to_rgb
from cprfl.data.packed import tar_uri
from cprfl.data.storage import stamps
from cprfl.errors import UnreadableImageError


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "1"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 4), 40_000, dtype=np.uint16))
    else:
        image = Image.new("RGB", (4, 5), (200, 200, 200)).convert(mode)
    if mode == "HSV":  # no file has it
        assert to_rgb(image).getpixel((0, 0)) == (200, 200, 200)
        return
    path = tmp_path / f"x.{'tiff' if mode in ('CMYK', 'YCbCr') else 'png'}"
    image.save(path)
    opened = open_image(str(path))
    assert (opened.mode, opened.size) == ("RGB", (4, 5))
    if mode not in ("1", "CMYK"):
        assert abs(np.asarray(opened).mean() - (155.6 if mode == "I;16" else 200)) < 5


def test_lab_is_converted_rather_than_refused(tmp_path: Path) -> None:
    colour = Image.new("RGB", (3, 3), (200, 30, 90))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(colour, *profiles, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "x.tif")
    assert np.allclose(np.asarray(open_image(str(tmp_path / "x.tif")))[0, 0], (200, 30, 90), atol=4)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "I;16"])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        Image.fromarray(np.full((2, 2), 7, np.uint16)).save(tmp_path / "x.png", transparency=7)
    else:
        image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
        options: dict[str, Any] = {"transparency": 0} if mode == "P" else {}
        image.convert(mode).save(tmp_path / "x.png", **options)
    assert open_image(str(tmp_path / "x.png")).getpixel((0, 0)) == (255, 255, 255)


def test_the_first_of_several_frames_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for name in ("x.gif", "x.png", "x.tif", "x.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, green, _ = np.asarray(open_image(str(tmp_path / name)))[1, 1]
        assert red > 200 > 50 > green, name


def test_exif_orientation_is_applied_to_deep_images_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "r.jpg", exif=exif)
    deep = np.zeros((4, 8), np.uint16)
    deep[0, 0] = 65535
    Image.fromarray(deep).save(tmp_path / "d.png", exif=exif)
    assert open_image(str(tmp_path / "r.jpg")).size == (4, 8)
    opened = open_image(str(tmp_path / "d.png"))
    assert opened.size == (4, 8)
    assert opened.getpixel((3, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_by_their_full_range_as_ever() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    as_ever = Image.fromarray(values).convert("I").point(lambda value: value / 257).convert("L")
    for image in (Image.fromarray(values), Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())):
        for reading in (Reading(), Reading(value_range=(0, 65535))):
            assert np.array_equal(np.asarray(to_rgb(image.copy(), reading))[..., 0], np.asarray(as_ever))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.sampled_from([(0, 1), (-1, 1), (0, 4095), (5, 6.5)]))
def test_a_float_image_of_scaled_bytes_is_read_back_exactly(grey: list[int], value_range: tuple[float, float]) -> None:
    black, white = value_range
    values = (np.array([grey]) / 255 * (white - black) + black).astype(np.float32)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "TIFF")
    opened = to_rgb(Image.open(content), Reading(value_range=value_range))
    assert np.asarray(opened)[0, :, 0].tolist() == grey


def tiff_of(path: Path, values: np.ndarray, photometric: int = 1) -> str:
    """A TIFF of one channel, also of the kinds that Pillow does not write."""
    height, width = values.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    fields = {
        256: width, 257: height, 258: values.itemsize * 8, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height,
        279: values.nbytes, 339: sample_format,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + values.nbytes) + values.tobytes() + directory)
    return str(path)


def greys(uri: str, **reading: object) -> list[int]:
    return np.asarray(open_image(uri, Reading(**reading)))[0, :, 0].tolist()  # type: ignore[arg-type]


def test_values_are_clipped_signs_are_kept_and_white_may_be_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    signed = tiff_of(path, np.array([[-500, -100, 0, 100, 900]], np.int16))
    assert greys(signed, value_range=(-100, 155)) == [0, 0, 100, 200, 255]
    whole = tiff_of(path, np.array([[-(2**31), 0, 2**31 - 1]], np.int32))
    assert greys(whole, value_range=(-(2.0**31), 2.0**31)) == [0, 128, 255]
    unsigned = tiff_of(path, np.array([[0, 2**31, 2**32 - 1]], np.uint32))
    assert greys(unsigned, value_range=(0, 2.0**32)) == [0, 128, 255]
    infinite = tiff_of(path, np.array([[-np.inf, 0.5, np.inf]], np.float32))
    assert greys(infinite, value_range=(0, 1)) == [0, 128, 255]
    inverted = tiff_of(path, np.array([[0, 65535]], np.uint16), photometric=0)
    assert greys(inverted) == [255, 0]
    inverted = tiff_of(path, np.array([[0, 1]], np.float32), photometric=0)
    assert greys(inverted, value_range=(0, 1)) == [255, 0]


def test_a_greymap_of_sixteen_bits_needs_no_setting(tmp_path: Path) -> None:
    for most in (4095, 65535):
        path = tmp_path / "x.pgm"
        path.write_bytes(f"P5 2 1 {most}\n".encode() + np.array([0, most], ">u2").tobytes())
        assert greys(str(path)) == [0, 255]


@pytest.mark.parametrize(
    ("values", "value_range", "message"),
    [
        (np.array([[0, 1]], np.float32), None, "a float image with values in [0, 1]; set encoder.value_range: [0, 1]"),
        (np.array([[0, 200]], np.float32), None, "values in [0, 200]; set encoder.value_range: [0, 255]"),
        (np.array([[-3, 9000]], np.float32), None, "values in [-3, 9000]; set encoder.value_range: [BLACK, WHITE]"),
        (np.array([[0, 70_000]], np.int32), None, "an integer image with values in [0, 70000]; set encoder."),
        (np.array([[-5, 5]], np.int16), None, "an integer image with values in [-5, 5]"),
        (np.array([[np.nan, np.nan]], np.float32), None, "float image with values in [nan, nan]"),
        (np.array([[np.nan, 0.5]], np.float32), (0, 1), "1 of 2 values are NaN"),
        (np.array([[0, 40_000]], np.uint16), (0, 1), "leaves black and white only"),
    ],
)  # fmt: skip
def test_values_whose_meaning_nobody_says_are_refused(
    tmp_path: Path, values: np.ndarray, value_range: tuple[float, float] | None, message: str
) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        open_image(tiff_of(tmp_path / "x.tif", values), Reading(value_range=value_range))
    assert message in str(caught.value)


def test_colour_of_sixteen_bits_is_read_by_its_upper_eight_or_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + np.array([65535, 257 * 100, 0], ">u2").tobytes()
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    assert open_image(str(path)).getpixel((0, 0)) == (255, 100, 0)
    with pytest.raises(UnreadableImageError, match="colour image of 16 bits"):
        open_image(str(path), Reading(value_range=(0, 4095)))


def test_a_large_image_is_refused_before_it_is_decoded_and_large_is_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("1", (20_000, 11_000)).save(path)
    with pytest.raises(UnreadableImageError, match="20000 x 11000 pixels are more than encoder.max_pixels"):
        open_image(str(path))
    path.write_bytes(path.read_bytes()[:200])  # no pixel of it is looked at
    with pytest.raises(UnreadableImageError, match="encoder.max_pixels"):
        open_image(str(path))
    Image.new("RGB", (10, 10)).save(path)
    assert open_image(str(path), Reading(max_pixels=100)).size == (10, 10)
    with pytest.raises(UnreadableImageError, match="10 x 10 pixels are more than encoder.max_pixels \\(99\\)"):
        open_image(str(path), Reading(max_pixels=99))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<html>404</html>", "no image that Pillow can read: the file begins with b'<html>404</html>'"),
        (b"version https://git-lfs.github.com/spec/v1", "begins with b'version https://git-lfs."),
        (b"II*\0\x08\0\0\0\0\0", "TIFF file of another pixel type"),
    ],
)
def test_what_is_no_image_is_shown(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImageError) as caught:
        open_image(str(tmp_path / "x.jpg"))
    assert message in str(caught.value)


@pytest.mark.timeout(10)
def test_folders_pipes_and_missing_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, message in (("pipe.jpg", "a pipe or device"), (".", "a folder"), ("none.jpg", "file not found")):
        with pytest.raises(UnreadableImageError, match=message):
            open_image(str(tmp_path / name))
    with pytest.raises(UnreadableImageError):
        open_image("/dev/zero")


def test_the_suffix_says_nothing_and_a_truncated_file_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert open_image(str(tmp_path / "x.jpg")).size == (64, 64)
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-500])
    with pytest.raises(UnreadableImageError):
        open_image(str(tmp_path / "x.jpg"))


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


def test_threads_with_different_limits_do_not_meet(tmp_path: Path) -> None:
    Image.new("L", (30, 30)).save(tmp_path / "x.png")
    wrong: list[str] = []

    def read(limit: int) -> None:
        for _ in range(50):
            try:
                open_image(str(tmp_path / "x.png"), Reading(max_pixels=limit))
            except UnreadableImageError:
                wrong.extend(["refused"] if limit >= 900 else [])
            else:
                wrong.extend(["read"] if limit < 900 else [])

    threads = [threading.Thread(target=read, args=(limit,)) for limit in (899, 900, 10**9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_images_in_archives_are_read_and_have_the_archives_stamp(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(content, "PNG")
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"-" * 512 + content.getvalue() + b"-" * 512)
    size = len(content.getvalue())
    whole, empty = tar_uri(str(archive), 512, size, "a.png"), tar_uri(str(archive), 512, 0, "b.png")
    assert open_image(whole).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(UnreadableImageError, match="an empty file"):
        open_image(empty)
    with pytest.raises(UnreadableImageError, match="file not found"):
        open_image(tar_uri(str(tmp_path / "none.tar"), 0, 9, "a.png"))
    scene = "synthetic://v1/0?seed=0&size=32&objects=1-2"
    assert image_stamps([whole, scene, empty, str(archive)]) == [
        (expected := stamps([str(archive)])[0]), (), expected, expected,
    ]  # fmt: skip


def test_the_odd_images_of_the_cases_are_read_or_refused(shared: Path) -> None:
    folder = shared / "cases" / "22-large-and-odd-images"
    if not folder.exists():
        pytest.skip(f"no cases at {folder}")
    assert open_image(str(folder / "sat.jpg")).size == (10_000, 9_500)
    with pytest.raises(UnreadableImageError, match=r"encoder.value_range: \[0, 1\]"):
        open_image(str(folder / "float.tif"))
    scaled = np.asarray(open_image(str(folder / "float.tif"), Reading(value_range=(0, 1))))
    assert np.abs(scaled.astype(int) - np.asarray(open_image(str(folder / "grey.png")))).max() <= 1
    assert open_image(str(folder / "exif6.jpg")).size == (96, 128)
