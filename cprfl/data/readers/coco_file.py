"""A JSON file in COCO's layout, as far as labels need it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from cprfl.data.readers.json_text import read_json
from cprfl.data.readers.text import STRUCTURED_BYTES, read_file
from cprfl.errors import DatasetError

_WHAT = "COCO annotations"
_MOST_BYTES = 2**32  # most of which are outlines, that are passed over
_SECTIONS = "an instances file of COCO has images, annotations, categories"


class CocoImage(msgspec.Struct, gc=False):
    """An entry of ``images``."""

    id: Any = None
    file_name: Any = None
    coco_url: Any = None


class CocoAnnotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    iscrowd: Any = None


class CocoCategory(msgspec.Struct, gc=False):
    """An entry of ``categories``."""

    id: Any = None
    name: Any = None
    supercategory: Any = None


class CocoFile(msgspec.Struct):
    """The file; msgspec passes over what is not named here (segmentations are most of it) without keeping it."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class _Sections(msgspec.Struct):
    images: list[CocoImage] | None = None
    annotations: list[CocoAnnotation] | None = None
    categories: list[CocoCategory] | None = None


def read_coco(path: str) -> CocoFile:
    """The file, with all three lists.

    Raises:
        DatasetError: where it is missing, is no JSON, or lacks one of the lists or any image.
    """
    found = _decode(path)
    if found.images is None:
        raise DatasetError(f"{path}: no list `images`; {_SECTIONS}")
    if not found.images:
        raise DatasetError(f"{path}: `images` is empty")
    if found.annotations is None:
        raise DatasetError(f"{path}: no list `annotations`: it lists images without labels; {_SECTIONS}")
    if found.categories is None:
        raise DatasetError(f"{path}: no list `categories`; {_SECTIONS}")
    return CocoFile(found.images, found.annotations, found.categories)


def _decode(path: str) -> _Sections:
    try:
        try:
            content = read_file(path, _WHAT, _MOST_BYTES)
            return msgspec.json.decode(content, type=_Sections)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if len(content) > STRUCTURED_BYTES:
                raise DatasetError(f"{path}: not JSON that can be read in a file of this size: {error}") from None
            # Python's parser reads more (NaN, which Python writes; byte-order marks), and knows line and column.
            return msgspec.convert(read_json(path, _WHAT), _Sections)
    except msgspec.ValidationError as error:
        if "$" not in str(error):  # a list or a number instead of an object
            return _Sections()
        raise DatasetError(f"{path}: {error}; {_SECTIONS}") from None


Id = int | str
_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)


def id_of(value: object) -> Id | None:
    """An id by its value, for programs write 7, 7.0 and ``"7"`` for one id; none where there is no id."""
    if type(value) is int:  # a bool is none
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _NUMBER.fullmatch(text) else text or None
    return None


def required_id(value: object, field: str, where: str) -> Id:
    """As `id_of`.

    Raises:
        DatasetError: where there is no id.
    """
    key = id_of(value)
    if key is None:
        raise DatasetError(f"{where}: no `{field}`" + ("" if value is None else f", but {value!r}"))
    return key
