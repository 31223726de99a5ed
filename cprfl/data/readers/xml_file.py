"""XML files of annotations: decoded as they say, without anything that a document type could do."""

from __future__ import annotations

import codecs
import re
from xml.etree import ElementTree

from cprfl.data.readers.text import decoded
from cprfl.errors import DatasetError

_DECLARED = re.compile(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
# What is meant by a declaration, as web browsers take it: programs that declare gb2312 write all of GBK, and a
# declaration that can be read byte by byte is in no UTF-16 file.
_MEANT = {"utf-8": "utf-8-sig", "utf8": "utf-8-sig", "utf-16": "utf-8-sig", "gb2312": "gb18030", "gbk": "gb18030"}


def parse_xml(content: bytes, path: str, what: str, root: str) -> ElementTree.Element:
    """The root element of an XML file.

    Args:
        content: of the file.
        path: where it is, for messages.
        what: the file is, for messages.
        root: the name that the root element must have.

    Raises:
        DatasetError: where it does not decode as it declares, is no XML, has a document type (whose entities may grow
            without end, or read other files) or another root element.
    """
    text = _decode(content, path)
    if "<!DOCTYPE" in text:
        line = text[: text.index("<!DOCTYPE")].count("\n") + 1
        raise DatasetError(f"{path}, line {line}: a document type (<!DOCTYPE ...>) is not read; remove it")
    try:
        element = ElementTree.fromstring(text.lstrip())
    except ElementTree.ParseError as error:
        raise DatasetError(f"{path}: not XML: {error}; export it again, or correct it there") from None
    if element.tag != root:
        raise DatasetError(f"{path}: no {what}: its root element is <{element.tag}>, not <{root}>")
    return element


def _decode(content: bytes, path: str) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        written = encoding = "utf-16"
    else:
        declared = _DECLARED.match(content)
        written = declared[1].decode().lower() if declared else "utf-8"
        encoding = _MEANT.get(written, written)
    try:
        return decoded(content, encoding)
    except LookupError:
        raise DatasetError(f"{path}: its first line declares {written!r}, which is no encoding; correct it") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{path}, line {line}: not {written} text (byte {error.start}); save it as UTF-8, or declare its encoding "
            "in the first line"
        ) from None
