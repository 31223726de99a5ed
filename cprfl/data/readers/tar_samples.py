"""Samples of WebDataset's tar files: what belongs to each, and what its labels say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cprfl.data.readers.json_text import parse_json
from cprfl.data.readers.label_values import Cell, refuse_joined_names
from cprfl.data.readers.locate import SUFFIXES
from cprfl.data.readers.tar_members import Member, tar_members
from cprfl.errors import DatasetError

KINDS_OF_LABELS = ("json", "cls", "txt")
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_KEYS = ("labels", "label", "classes", "class", "tags", "categories", "category")  # of labels in an object
_MANY_TEXTS = 20  # of which most are unique, and so are captions


@dataclass(frozen=True)
class Sample:
    """What has one name up to the first dot in a tar file.

    Attributes:
        tar: path or URI of the file.
        key: the name.
        parts: the members, by what follows the dot, in lower case.
    """

    tar: str
    key: str
    parts: dict[str, Member] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The sample's place, for messages."""
        return f"{self.tar}, sample {self.key}"

    @property
    def images(self) -> list[str]:
        """The parts that are images."""
        return [part for part in self.parts if f".{part.rpartition('.')[2]}" in SUFFIXES]

    def ending_in(self, suffix: str) -> list[str]:
        """The part that is called ``suffix``, or those that end in it."""
        ending = [part for part in self.parts if part.endswith(f".{suffix}")]
        return [suffix] if suffix in self.parts else ending


def sample_name(name: str) -> tuple[str, str] | None:
    """The key of a member's sample and which part it is; none for a member that is of no sample."""
    found = _SAMPLE.fullmatch(name)
    return (found[1], found[2].lower()) if found else None


def samples_of(path: str) -> list[Sample]:
    """The samples of a tar file in its order; the bytes of what can be labels are read.

    Raises:
        DatasetError: where the file cannot be read, or has a name twice.
    """
    samples: dict[str, Sample] = {}
    for member in tar_members(path, lambda name: name.lower().endswith(KINDS_OF_LABELS)):
        named = sample_name(member.name)
        if named is None:
            continue
        key, part = named
        sample = samples.setdefault(key, Sample(path, key))
        if part in sample.parts:
            raise DatasetError(f"{path}: {member.name} is there twice; write the archive anew")
        sample.parts[part] = member
    return list(samples.values())


def image_of(sample: Sample, wanted: str | None) -> Member:
    """The image of a sample: the only one, or the one that ``dataset.image`` names.

    Raises:
        DatasetError: where there is none such, or several.
    """
    found = sample.images if wanted is None else sample.ending_in(wanted)
    if len(found) != 1:
        some = " and ".join(f".{part}" for part in found or sample.images)
        raise DatasetError(
            f"{sample.where}: {'no image such as dataset.image names' if not found else 'several images'} ({some}); "
            "name the one to take with dataset.image, such as jpg (a sample is what has one name up to the first dot)"
        )
    return sample.parts[found[0]]


def label_cells(samples: Sequence[Sample], wanted: str | None, key: str | None) -> list[Cell]:
    """The labels of each sample as they are written: text, or numbers where all are.

    Args:
        samples: those that have an image.
        wanted: what the labels' names end in, where the user says it.
        key: of the labels in a JSON object, where the user says it.

    Raises:
        DatasetError: naming the sample whose labels are missing or unclear.
    """
    kind = wanted or _kind_of_labels(samples, key)
    contents = [(sample.where, _labels_of(sample, kind)) for sample in samples]
    if kind.endswith("json"):
        parsed = [(where, parse_json(content, where)) for where, content in contents]
        key = key if key is not None else _key_of_labels([value for _, value in parsed if isinstance(value, dict)])
        values = [(where, _of_json(where, value, key)) for where, value in parsed]
        refuse_joined_names([(where, value) for where, value in values if isinstance(value, str)], "write a list")
        return [(where, value if isinstance(value, list) else [value]) for where, value in values]
    separators = r"[\n,]" if kind.endswith("cls") else r"\n"
    named = [(where, _of_text(where, content, separators)) for where, content in contents]
    texts = [(where, text) for where, own in named for text in own]
    refuse_joined_names(texts, "write one name a line")
    if wanted is None and kind == "txt":
        _refuse_captions(texts)
    return _numbers(named)


def _kind_of_labels(samples: Sequence[Sample], key: str | None) -> str:
    """The one suffix of what can be labels; JSON that never has the key is something else."""
    kinds = [kind for kind in KINDS_OF_LABELS if any(sample.ending_in(kind) for sample in samples)]
    if len(kinds) > 1 and "json" in kinds and not any(_says_labels(sample, key) for sample in samples):
        kinds.remove("json")
    if len(kinds) == 1:
        return kinds[0]
    parts = Counter(part for sample in samples for part in sample.parts)
    some = ", ".join(f".{part}" for part, _ in parts.most_common(10))
    several = f"{' and '.join(f'.{kind}' for kind in kinds)} can each be labels" if kinds else "no labels are here"
    raise DatasetError(
        f"{samples[0].where if samples else 'dataset.splits'}: {several} (samples have {some or 'nothing'}); name "
        "theirs with dataset.labels, such as json"
    )


def _says_labels(sample: Sample, key: str | None) -> bool:
    keys = set(_KEYS if key is None else [key])
    for part in sample.ending_in("json"):
        value = parse_json(sample.parts[part].content or b"", sample.where)
        if isinstance(value, list) or (isinstance(value, dict) and keys & value.keys()):
            return True
    return False


def _labels_of(sample: Sample, kind: str) -> bytes:
    found = sample.ending_in(kind)
    if len(found) != 1:
        raise DatasetError(
            f"{sample.where}: {'several files' if found else 'no file'} of labels (.{kind}); an image that shows no "
            "class needs an empty list, and dataset.labels names the labels where there are others"
        )
    return sample.parts[found[0]].content or b""


def _key_of_labels(objects: Sequence[dict[str, Any]]) -> str:
    """The one key that is in all objects and is a usual one; ``labels`` before all others."""
    common = [key for key in _KEYS if objects and all(key in value for value in objects)]
    return common[0] if len(common) == 1 else _KEYS[0]


def _of_json(where: str, value: Any, key: str) -> Any:
    """A list of labels, or one label."""
    if isinstance(value, dict):
        if key not in value:
            raise DatasetError(
                f"{where}: no {key!r} in its JSON (there are {', '.join(map(repr, value)) or 'no keys'}); name it with "
                "dataset.labels_key"
            )
        value = value[key]
    if isinstance(value, str | int) and value != "":
        return value
    if not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        raise DatasetError(f"{where}: {str(value)[:60]!r} is no list of names or indices; an empty list says: no class")
    return value


def _of_text(where: str, content: bytes, separators: str) -> list[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: its labels are not UTF-8 text (byte {error.start})") from None
    parts = [part.strip() for part in re.split(separators, text)]
    return [number for part in parts if part for number in (part.split() if _is_numbers(part) else [part])]


def _is_numbers(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}(\s+-?\d{1,18})*", text) is not None


def _numbers(cells: Sequence[tuple[str, list[str]]]) -> list[Cell]:
    """Indices, where all texts are numbers."""
    if all(_is_numbers(text) for _, texts in cells for text in texts):
        return [(where, [int(text) for text in texts]) for where, texts in cells]
    return list(cells)


def _refuse_captions(texts: Sequence[tuple[str, str]]) -> None:
    different = {text for _, text in texts}
    if len(different) > _MANY_TEXTS and 2 * len(different) > len(texts):
        where, text = texts[0]
        raise DatasetError(
            f"{where}: {text[:60]!r} looks like a caption ({len(different)} different texts in {len(texts)}), not like "
            "the name of a class; if they are names, set dataset.labels: txt"
        )
