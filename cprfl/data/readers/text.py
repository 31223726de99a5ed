"""Text files of annotations, whatever their encoding."""

from __future__ import annotations

import codecs

from cprfl.data import storage
from cprfl.errors import DatasetError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip

_OF_NAMES = {"idna", "punycode", "undefined"}  # of host names, by steps that grow with the square; and one that fails

TEXT_BYTES = 2**30
"""Of the largest text that is read: lists of millions of images are smaller."""
STRUCTURED_BYTES = 2**28
"""Of the largest JSON or XML that is read as a whole, for what is made of it takes many times as much memory."""


def read_lines(path: str, what: str) -> list[tuple[int, str]]:
    """Numbered, stripped, non-empty lines of a text file.

    Raises:
        DatasetError: where the file is missing, is no text or is empty.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path, what).splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise DatasetError(f"{path}: {what} is empty; it needs one entry a line")
    return lines


def read_text(path: str, what: str, encoding: str | None = None, limit: int = TEXT_BYTES) -> str:
    """The text of a file: in ``encoding``, or as its byte-order mark says, or UTF-8.

    Raises:
        DatasetError: where it is missing, holds more than ``limit`` bytes, or does not decode.
    """
    return decode_text(read_file(path, what, limit), path, what, encoding)


def decode_text(content: bytes, path: str, what: str, encoding: str | None = None) -> str:
    """The text of a file's bytes; see `read_text`."""
    chosen = encoding or next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return without_nul(decoded(content, chosen), path)
    except LookupError:
        raise DatasetError(f"{path}: no such encoding as {chosen!r}; see Python's list of standard encodings") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{path}, line {line}: {what} is not {chosen.upper()} text (byte {error.start}); save it as UTF-8"
        ) from None


def decoded(content: bytes, encoding: str) -> str:
    """The text of bytes.

    Raises:
        LookupError: where there is no such encoding of texts.
        UnicodeDecodeError: where these bytes are none.
    """
    if codecs.lookup(encoding).name in _OF_NAMES:
        raise LookupError(encoding)
    return content.decode(encoding)


def without_nul(text: str, path: str) -> str:
    """The same text.

    Raises:
        DatasetError: where it holds NUL, which no path and no name may.
    """
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DatasetError(
            f"{path}, line {line}: a NUL character; this is no text, or is of another encoding than it seems"
        )
    return text


def read_file(path: str, what: str, limit: int = TEXT_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        DatasetError: where it is missing, no file (a folder, a pipe), or holds more than ``limit`` bytes.
    """
    try:
        return storage.read_bytes(path, limit)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DatasetError(f"{path}: {what} not found; check the path and data_root") from None
