"""A page that is one file: opened from a disk, it asks for nothing else.

Its own Content-Security-Policy says so to the browser: no address is loaded, and no script runs but those written
here, whatever stands in the names of classes and files.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from cprfl.data.files import write_aside
from cprfl.data.images import Reading, open_image
from cprfl.errors import UnreadableImageError
from cprfl.words import counted, percent

_TEMPLATES = Path(__file__).parent / "templates"
_PIXELS = 128  # of a thumbnail's longer side
_QUALITY = 75


def write(
    path: Path, template: str, charts: Mapping[str, dict[str, Any]], *, also: Sequence[str] = (), **values: object
) -> None:
    """Write a page from one of the templates.

    Args:
        path: of the page.
        template: its file, which extends ``page.html.j2``.
        charts: Vega-Lite specifications by the names that the template gives to ``chart``.
        also: names of a script and a style sheet, ``<name>.js`` and ``<name>.css``, that the page has beside its own.
        values: what the template says.
    """
    # One script: the plots' library, and the lines that draw with it.
    lines = "".join((_TEMPLATES / f"{name}.js").read_text() for name in ("charts", *also))
    scripts = [vl_convert.javascript_bundle(lines)] if charts else []
    text = _environment().get_template(template).render(
        charts=charts,
        scripts=[Markup(script) for script in scripts],  # ours, and none ends its element early
        policy=_policy(scripts),
        style=Markup("".join((_TEMPLATES / f"{name}.css").read_text() for name in ("page", *also))),
        **values,
    )  # fmt: skip
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cprfl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"counted": counted, "percent": percent, "share": _share, "marked": _marked}
    return environment


def _share(value: float | None) -> str:
    """A fraction in percent, or a dash where there is none."""
    return "–" if value is None else percent(value)  # noqa: RUF001


def _marked(text: str) -> Markup:
    """Text with what stands between backticks as code, escaped."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 and number < len(parts) - 1 else part
        for number, part in enumerate(map(escape, parts))
    )


def _policy(scripts: list[str]) -> str:
    """What the page may do: show what is in it, and run these scripts."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


class Thumbnail(NamedTuple):
    """A small copy of an image: JPEG as base64, and its size in pixels."""

    jpeg: str
    width: int
    height: int


def thumbnails(uris: Sequence[str], reading: Reading, pixels: int) -> dict[str, Thumbnail]:
    """Small copies of images by URI, made in threads; without those that do not decode.

    Args:
        uris: each is opened once.
        reading: how image files are read.
        pixels: of the longer side of a copy.
    """
    asked = list(dict.fromkeys(uris))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = pool.map(lambda uri: _thumbnail(uri, reading, pixels), asked)
        return {uri: picture for uri, picture in zip(asked, made, strict=True) if picture is not None}


class Thumbnails:
    """Small copies of images, as addresses that hold the picture itself; at most so many.

    Args:
        limit: a page with more of them would be slow to open.
        reading: how image files are read.
    """

    def __init__(self, limit: int, reading: Reading) -> None:
        self._limit, self._reading = limit, reading
        self._made: dict[str, str | None] = {}

    def __call__(self, uri: str) -> str | None:
        """The picture's address; none where the image does not decode, or there are enough of them."""
        if uri not in self._made and len(self._made) < self._limit:
            picture = _thumbnail(uri, self._reading, _PIXELS)
            self._made[uri] = picture and f"data:image/jpeg;base64,{picture.jpeg}"
        return self._made.get(uri)


def _thumbnail(uri: str, reading: Reading, pixels: int) -> Thumbnail | None:
    try:
        image = open_image(uri, reading)
    except UnreadableImageError:
        return None
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return Thumbnail(base64.b64encode(file.getvalue()).decode(), *image.size)
