"""Text files of annotations, whatever their encoding."""

from __future__ import annotations

import codecs

from cprfl.data import storage
from cprfl.errors import DatasetError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


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


def read_text(path: str, what: str, encoding: str | None = None) -> str:
    """The text of a file: in ``encoding``, or as its byte-order mark says, or UTF-8.

    Raises:
        DatasetError: where it is missing or does not decode.
    """
    return decode_text(read_file(path, what), path, what, encoding)


def decode_text(content: bytes, path: str, what: str, encoding: str | None = None) -> str:
    """The text of a file's bytes; see `read_text`."""
    chosen = encoding or next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(chosen)
    except LookupError:
        raise DatasetError(f"{path}: no such encoding as {chosen!r}; see Python's list of standard encodings") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{path}, line {line}: {what} is not {chosen.upper()} text (byte {error.start}); save it as UTF-8"
        ) from None


def read_file(path: str, what: str) -> bytes:
    """The bytes of a file.

    Raises:
        DatasetError: where it is missing.
    """
    try:
        return storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DatasetError(f"{path}: {what} not found; check the path and data_root") from None
