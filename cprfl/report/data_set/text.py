"""A data set's report as text of 80 columns; its colours show on a terminal alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cprfl.data.manifest import TEST, TRAIN
from cprfl.report.data_set.labels import SPLITS, ClassFacts, Together
from cprfl.report.data_set.problems import Problem, problems
from cprfl.report.data_set.report import DataReport, Sized
from cprfl.report.findings.label_noise import Suspect
from cprfl.words import counted, named, percent

WIDTH = 80
_LINES = 55  # that are left to the classes below each other, beside what else there is to say
_ROWS, _FEW_ROWS = 20, 8  # classes below each other, at most and in any case; as many again stand beside them
_EIGHTHS = " ▏▎▍▌▋▊▉"
_COLOURS = {"error": "bold red", "warning": "yellow", "hint": "cyan", "head": "blue", "medium": "green", "tail": "red"}
_MARKS = {"error": "✗", "warning": "!", "hint": "·"}
_NAME, _BAR, _COUNT = 15, 8, 7  # columns of a class: its name, its bar, and two counts
_TIES, _SUSPECTS, _NOTES = 4, 8, 3  # lines that are shown of each


def in_words(report: DataReport) -> list[Text]:
    """The report's lines, each at most `WIDTH` columns wide."""
    above = [_heading(report), _problems(problems(report)), _splits(report)]
    below = [_together(report), _suspects(report), _notes(report.notes)]
    first, last = ([list(section) for section in sections] for sections in (above, below))
    used = sum(len(section) + 1 for section in (*first, *last) if section)
    tail = list(_long_tail(report, min(_ROWS, max(_FEW_ROWS, _LINES - used))))
    lines: list[Text] = []
    for section in filter(None, (*first, tail, *last)):
        lines += [Text(), *section] if lines else section
    for line in lines:
        line.rstrip()
    return lines


def _heading(report: DataReport) -> Iterator[Text]:
    classes = counted(len(report.labels.classes), "class")
    yield Text(_fit(f"{report.name}: {counted(report.num_images, 'image')}, {classes}", WIDTH), "bold")


def _problems(found: Sequence[Problem]) -> Iterator[Text]:
    yield Text("Problems" if found else "Problems: none found", "bold")
    for problem in found:
        mark = f" {_MARKS[problem.severity]} "
        for number, line in enumerate(_wrapped(problem.title, 3)):
            yield Text.assemble((mark if number == 0 else "   ", _COLOURS[problem.severity]), line)
        if problem.example:
            yield Text(f"     {_fit(problem.example, WIDTH - 5)}", "dim")
        yield from (Text(f"     {line}") for line in _wrapped(problem.mend, 5))


def _splits(report: DataReport) -> Iterator[Text]:
    yield Text("Images by split    labels per image     without label", "bold")
    for name in SPLITS:
        counts = report.labels.labels_per_image[name]
        images = report.labels.images[name]
        if images:
            mean = sum(number * count for number, count in enumerate(counts)) / images
            least = next(number for number, count in enumerate(counts) if count)
            spread = f"{mean:.1f} ({least} to {len(counts) - 1})"
            yield Text(f" {name:<6}{images:>10,}   {spread:<18}{len(report.labels.without_label[name]):>12,}")
    facts = report.images
    if facts is None:
        yield Text(" images were not opened: --images looks at them")
    elif facts.smallest and facts.largest:
        smallest, largest = _size(facts.smallest), _size(facts.largest)
        yield Text(f" sizes from {smallest} to {largest} pixels" if smallest != largest else f" {smallest} pixels each")


def _size(found: Sized) -> str:
    return f"{found.width} x {found.height}"


def _long_tail(report: DataReport, rows: int) -> Iterator[Text]:
    classes, groups = report.labels.classes, report.groups
    sizes = {name: sum(found.group == name for found in classes) for name in ("head", "medium", "tail")}
    yield Text("The long tail: images that show a class", "bold")
    yield Text.assemble(
        f" {sizes['head']} ",
        ("head", _COLOURS["head"]),
        f" (at least {groups.head} training images), {sizes['medium']} ",
        ("medium", _COLOURS["medium"]),
        f", {sizes['tail']} ",
        ("tail", _COLOURS["tail"]),
        f" (fewer than {groups.tail})",
    )
    largest = max(1, *(found.images[TRAIN] for found in classes))
    rows = min(rows, max(_FEW_ROWS, math.ceil(len(classes) / 2)))
    first, second = classes[:rows], classes[rows:][-rows:]
    title = f" {'':{_NAME + _BAR + 1}}{TRAIN:>{_COUNT}}{TEST:>{_COUNT - 1}}"
    yield Text(title + (f" {title}" if second else ""), "dim")
    for number, left in enumerate(first):
        line = _class(left, largest)
        if number < len(second):
            line.append(" ").append_text(_class(second[number], largest))
        yield line
    between = classes[rows:-rows]
    if between:
        most, least = between[0].images[TRAIN], between[-1].images[TRAIN]
        yield Text(f" and {counted(len(between), 'class')} between, of {most:,} to {least:,} training images", "dim")


def _class(found: ClassFacts, largest: int) -> Text:
    bar = _bar(found.images[TRAIN] / largest)
    counts = f"{found.images[TRAIN]:>{_COUNT},}{found.images[TEST]:>{_COUNT - 1},}"
    return Text.assemble(f" {_fit(found.name, _NAME)} ", (bar, _COLOURS[found.group]), counts)


def _bar(share: float) -> str:
    """Blocks of an eighth of a column; what there is of is seen."""
    eighths = max(round(share * _BAR * 8), 1 if share > 0 else 0)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR)


def _together(report: DataReport) -> Iterator[Text]:
    pairs, never_alone = report.labels.together[:_TIES], report.labels.never_alone
    if not pairs and not never_alone:
        return
    yield Text("Classes that come together (training images)", "bold")
    for pair in pairs:
        said = f"{pair.images:,} images, {pair.share:.0%} of the first, {pair.lift:.1f} x chance"
        names = _fit(f"{pair.first} with {pair.second}", WIDTH - 2 - cell_len(said))
        yield Text(f" {names} {said}")
    if never_alone:
        listed = named([_never_alone(pair) for pair in never_alone], 3)
        said = f"{counted(len(never_alone), 'class')} never alone: {listed}"
        yield from (Text(f" {line}") for line in _wrapped(said, 1))


def _never_alone(pair: Together) -> str:
    often = "always" if pair.share == 1 else f"{pair.share:.0%}"
    return f"{pair.first} ({often} with {pair.second})"


def _suspects(report: DataReport) -> Iterator[Text]:
    if report.suspects is None:
        yield Text("Labels that look wrong", "bold")
        yield from (Text(f" {line}") for line in _wrapped(str(report.no_suspects), 1))
    elif report.suspects:
        yield Text("Labels that look wrong (a plain classifier, on images that it has not seen)", "bold")
        yield from (Text(f" {_fit(_suspect(found), WIDTH - 1)}") for found in report.suspects[:_SUSPECTS])
        if len(report.suspects) > _SUSPECTS:
            yield Text(f" and {len(report.suspects) - _SUSPECTS} more: --html shows them", "dim")


def _suspect(found: Suspect) -> str:
    said = "labelled" if found.labelled else "not labelled"
    claim = f"{said} {found.class_name}: {percent(found.score)} (labelled ones: {percent(found.usual)})"
    image = _fit(found.image_id, max(20, WIDTH - 3 - cell_len(claim))).rstrip()
    return f"{image}  {claim}"


def _notes(notes: Sequence[str]) -> Iterator[Text]:
    if notes:
        yield Text("Notes of the reader", "bold")
        for note in notes[:_NOTES]:
            yield from (Text(f" {line}") for line in _wrapped(note, 1))
        if len(notes) > _NOTES:
            yield Text(f" and {len(notes) - _NOTES} more", "dim")


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines of a text that fit behind an indent."""
    return [_fit(line, WIDTH - indent).rstrip() for line in textwrap.wrap(_printable(text), WIDTH - indent)]


def _fit(text: str, columns: int) -> str:
    """The text in so many columns, which wide letters take two of; what is too long loses its middle."""
    text = _printable(text)
    if cell_len(text) <= columns:
        return set_cell_size(text, columns)
    keep = (columns - 1) // 2
    start, end = set_cell_size(text, keep), ""
    for letter in reversed(text):
        if cell_len(letter + end) > columns - 1 - keep:
            break
        end = letter + end
    return set_cell_size(f"{start}…{end}", columns)


def _printable(text: str) -> str:
    """Names are data: what would move the cursor or colour the terminal is shown as a mark."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
