"""Tables as people save them: encoding, delimiter and header found out; one list of cells a column."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.locate import SUFFIXES
from cprfl.data.readers.text import decode_text, read_file, without_nul
from cprfl.errors import DatasetError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_SEP_LINE = re.compile(r'"?sep=(.)"?[ ,;\t]*(?:\r\n|\r|\n)', re.IGNORECASE)
_SAMPLE = 1 << 16  # characters that show the delimiter
_RECORDS_AT_ONCE = 1_000
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32's little-endian begins like UTF-16's
# How Windows-1252 looks where it is not meant: signs within words or beside letters beyond ASCII, or many of those.
_QUOTES = r"\u2018\u2019\u201a\u201c\u201d\u201e\u2039\u203a\xab\xbb\u2013\u2014\u2026\u2022\xb7\xb4"  # and dashes
_SIGN = rf"(?:[^\x00-\x7f\w\s{_QUOTES}]|[\xb9\xb2\xb3\xbc-\xbe])"
_LETTER = r"[^\W\d_]"
_MOJIBAKE = re.compile(
    rf"{_SIGN}(?=[^\x00-\x7f])|(?<=[^\x00-\x7f]){_SIGN}|(?<={_LETTER}){_SIGN}(?={_LETTER})|[\xc0-\xff\u0152-\u017e]{{3}}"
)


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file.

    Attributes:
        path: of the file.
        delimiter: between its cells.
        columns: the n cells of each column, without blanks around them, by the column's name; a column without a name
            is under the empty one.
        lines: where each of the n rows begins.
        notes: what was decided about the file, one line each.
    """

    path: str
    delimiter: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.path}, line {self.lines[row]}"

    def first(self, column: str, cell: str) -> str:
        """File and line of the first row whose cell in a column is this one."""
        return self.where(self.columns[column].index(cell))


def read_table(
    path: str, delimiter: str | None = None, encoding: str | None = None, content: bytes | None = None
) -> Table:
    """The table in a file.

    Args:
        path: of the file.
        delimiter: of cells; found out unless given.
        encoding: found out unless given.
        content: of the file, where it has been read; what matters of it.

    Raises:
        DatasetError: naming the line of what is no table.
    """
    text, notes = decode(path, "CSV file", encoding, content)
    marked = _SEP_LINE.match(text)
    if marked:
        text, delimiter = text[marked.end() :], delimiter or marked.group(1)
    if not text.strip():
        raise DatasetError(f"{path}: CSV file is empty: no header, so no column 'image'")
    delimiter = delimiter or _delimiter(path, text)
    records = _records(path, text, delimiter, line=2 if marked else 1)
    line, header = first = next(records)
    names = [clean_name(name) for name in header]
    if any(is_image_name(name) for name in names):
        names = _names_without_header(path, line, names)
        notes.append(f"{path} has no header; its columns are taken for {' and '.join(names)}")
        records = _with_first(first, records)
        header = []
    _check_header(path, line, names)
    columns, lines, more = _filled(path, names, header, records)
    return Table(path, delimiter, columns, lines, [*notes, *more])


def decode(path: str, what: str, encoding: str | None = None, content: bytes | None = None) -> tuple[str, list[str]]:
    """The text of a file, and a note where its encoding was guessed: what is not UTF-8 may be Windows-1252.

    Raises:
        DatasetError: where it is missing, or does not decode, or looks as if it were of another encoding.
    """
    if content is None:
        content = read_file(path, what)
    if encoding is None and len(content) > 1 and (content[0] == 0) != (content[1] == 0):
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"  # without a mark, beginning with a plain character
    if encoding is None and not content.startswith(_WIDE):
        try:
            return without_nul(content.decode("utf-8-sig"), path).replace("\ufeff", ""), []
        except UnicodeDecodeError as error:
            text, notes = _windows_1252(path, what, content, error)
            return without_nul(text, path), notes
    return decode_text(content, path, what, encoding).replace("\ufeff", ""), []


def is_image_name(text: str) -> bool:
    """Whether a text ends as names of image files do."""
    return text.casefold().endswith(SUFFIXES)


def _windows_1252(path: str, what: str, content: bytes, error: UnicodeDecodeError) -> tuple[str, list[str]]:
    line = content[: error.start].count(b"\n") + 1
    name_it = "name its encoding with dataset.encoding (cp1250, cp1251, shift_jis, gb18030, ...), or save it as UTF-8"
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        raise DatasetError(f"{path}, line {line}: {what} is neither UTF-8 nor Windows-1252; {name_it}") from None
    beyond = re.search(r"[^\x00-\x7f]", text)
    assert beyond is not None  # for it is no UTF-8
    example = _word_at(text, beyond.start())
    if _MOJIBAKE.search(text):
        raise DatasetError(
            f"{path}, line {line}: {what} is not UTF-8, and hardly Windows-1252 ({example!r}); {name_it}"
        )
    return text, [f"{path} is not UTF-8; read as Windows-1252 ({example!r}, line {line}); dataset.encoding changes it"]


def _word_at(text: str, place: int) -> str:
    """What stands between delimiters and blanks around a place, or some of it."""
    before, behind = text[max(0, place - 40) : place], text[place : place + 40]
    return re.split(r"[\s,;|]", before)[-1] + re.split(r"[\s,;|]", behind)[0]


def _delimiter(path: str, text: str) -> str:
    """The delimiter with which the first records have as many fields as the first of them."""
    lines = islice(re.finditer("\n", text), 2)  # the names of many classes are a long first line
    sample = text[: max([_SAMPLE, *(line.end() for line in lines)])]
    best: tuple[float, int, str] | None = None
    for delimiter in DELIMITERS:
        records = _sampled(sample, delimiter)
        if len(text) > len(sample):
            records = records[:-1]
        width = len(records[0]) if records else 0
        if width < 2:
            continue
        alike = sum(len(record) == width for record in records) / len(records)
        if best is None or (alike, width) > best[:2]:
            best = alike, width, delimiter
    if best is None:
        raise DatasetError(
            f"{path}, line 1: a single column (no {', '.join(DELIMITERS.values())} in it); a table needs a header such "
            "as `image,labels`; dataset.delimiter names another delimiter"
        )
    return best[2]


def _sampled(sample: str, delimiter: str) -> list[list[str]]:
    """The records that a delimiter makes; none where it leaves a cell that is longer than any."""
    try:
        return [record for record in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if any(record)]
    except csv.Error:
        return []


def _records(path: str, text: str, delimiter: str, line: int) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank lines, with the line in which each begins."""
    offset = line - 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for record in reader:
            if reader.line_num + offset > line and len(record) > 1:
                _check_line_breaks(f"{path}, line {line}", record, delimiter)
            if len(record) > 1 or (record and record[0].strip()):
                yield line, record
            line = reader.line_num + offset + 1
    except csv.Error as error:
        raise DatasetError(
            f'{path}, line {line}: {error}; look for a quotation mark (") without its other half'
        ) from None


def _check_line_breaks(where: str, record: list[str], delimiter: str) -> None:
    """Refuse a cell that has swallowed rows."""
    for cell in record:
        inner = [field for line in cell.splitlines()[1:] for field in line.split(delimiter)]
        swallowed = next(filter(is_image_name, inner), None)
        if swallowed is not None:
            raise DatasetError(
                f'{where}: a cell goes on over {swallowed!r} in another line; look for a quotation mark (") without '
                "its other half"
            )


def _with_first(
    first: tuple[int, list[str]], others: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from others


def _names_without_header(path: str, line: int, cells: list[str]) -> list[str]:
    """Names for the columns of a table that begins with data: where it is clearly ``path;label``."""
    if len(cells) == 2 and is_image_name(cells[0]) and not is_image_name(cells[1]):
        return ["image", "labels"]
    raise DatasetError(
        f"{path}, line {line}: no header, for {next(cell for cell in cells if is_image_name(cell))!r} is an image; put "
        "a line with the columns' names above it, such as `image,labels`, or `image` and the classes"
    )


def _check_header(path: str, line: int, names: list[str]) -> None:
    named = Counter(filter(None, names))
    repeated = sorted(name for name, count in named.items() if count > 1)
    if repeated:
        raise DatasetError(f"{path}, line {line}: a column name is repeated: {', '.join(repeated)}; rename one of them")
    if not named:
        raise DatasetError(f"{path}, line {line}: a header without names; it names the columns, such as `image,labels`")


def _filled(
    path: str, names: list[str], header: list[str], records: Iterator[tuple[int, list[str]]]
) -> tuple[dict[str, Sequence[str]], list[int], list[str]]:
    """Columns and lines of these records, each with a cell for each name, but for empty ones at its end; and notes."""
    width = len(names)
    needed = max(number for number, name in enumerate(names, 1) if name)
    parts: list[list[tuple[str, ...]]] = [[] for _ in names]
    lines: list[int] = []
    waiting: list[list[str]] = []
    skipped = longer = headers = 0
    for line, record in records:
        if not any(map(str.strip, record)):
            skipped += 1
            continue
        if record == header:
            headers += 1
            continue
        if len(record) != width:
            longer += len(record) > width
            record = _of_width(f"{path}, line {line}", record, width, needed)
        waiting.append(record)
        lines.append(line)
        if len(waiting) == _RECORDS_AT_ONCE:
            _extend(parts, waiting)
            waiting = []
    _extend(parts, waiting)
    if not lines:
        raise DatasetError(f"{path}: CSV file has a header but no rows")
    notes = []
    if skipped:
        notes.append(f"{path}: {skipped} lines with nothing but delimiters are skipped")
    if headers:
        notes.append(f"{path}: {headers} lines are the header again, as in files put behind one another; skipped")
    if longer:
        notes.append(f"{path}: {longer} lines end in more delimiters than the header; nothing is behind them")
    # Tuples of texts are nothing to Python's garbage collector; lists of a million cells are, again and again.
    columns = [tuple(chain.from_iterable(part)) for part in parts]
    return _named(path, names, columns), lines, notes


def _of_width(where: str, record: list[str], width: int, needed: int) -> list[str]:
    if len(record) < needed or any(cell.strip() for cell in record[width:]):
        raise DatasetError(
            f"{where}: {width} columns in the header, {len(record)} here; a cell that holds the delimiter needs "
            "quotation marks around it"
        )
    return [*record[:width], *[""] * (width - len(record))]


def _extend(parts: list[list[tuple[str, ...]]], records: list[list[str]]) -> None:
    """Put records behind the columns' parts; cells that are alike are one string, for most of them are."""
    for part, cells in zip(parts, zip(*records, strict=True), strict=False):
        memo: dict[str, str] = {}
        stripped = list(map(str.strip, cells))
        part.append(tuple(map(memo.setdefault, stripped, stripped)))


def _named(path: str, names: list[str], columns: list[tuple[str, ...]]) -> dict[str, Sequence[str]]:
    """Columns by name; those without a name and without a cell are none."""
    named: dict[str, Sequence[str]] = {}
    for name, column in zip(names, columns, strict=True):
        if not name and not any(column):
            continue
        if name in named:
            raise DatasetError(f"{path}: two columns without a name; name them in the header, or remove one")
        named[name] = column
    return named
