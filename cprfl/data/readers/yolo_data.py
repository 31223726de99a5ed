"""The file that a YOLO data set begins with: Ultralytics' ``data.yaml``, darknet's ``obj.data``, or a list of names."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

import yaml

from cprfl.config import not_yaml
from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import split_name
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.locate import is_folder, is_there
from cprfl.data.readers.text import read_lines, read_text
from cprfl.data.storage import join, parent
from cprfl.errors import DatasetError


@dataclass(frozen=True)
class YoloData:
    """What the file says.

    Attributes:
        path: where it is.
        names: of the classes, by index.
        folders: where its relative paths may begin, the likeliest first.
        entries: paths of each set of images, by the file's own name for it (``train``, ``val``, ``valid``).
    """

    path: str
    names: Mapping[int, str]
    folders: Sequence[str]
    entries: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def as_written(self, written: str) -> list[str]:
        """Where a path of the file should lead, taken at its word."""
        return [_plain(join(folder, _slashed(written))) for folder in self.folders]

    def locate(self, written: str) -> str:
        """The folder or file that a path of the file means: as it is written, or the end of it that exists.

        Exported files say ``../train/images`` of a folder beside them, or name folders of another machine.

        Raises:
            DatasetError: where there is no such folder or file.
        """
        for end in filter(partial(_says_enough, written), ends(written)):
            for folder in self.folders:
                place = _plain(join(folder, end))
                if "/../" not in place if is_remote(place) else is_there(place):
                    return place
        raise DatasetError(
            f"{self.path}: {written!r} not found (looked for {' and '.join(self.as_written(written))}); correct the "
            "path, or choose other images with dataset.splits"
        )


def ends(written: str) -> Iterator[str]:
    """A path as it is, then without what may be another machine's: steps up, and leading folders one by one."""
    path = _slashed(written)
    yield path
    parts = _names(path)
    yield from (end for start in range(len(parts)) if (end := "/".join(parts[start:])) != path)


def _names(path: str) -> list[str]:
    return [part for part in PurePosixPath(path).parts if part not in ("/", "..")]


def _says_enough(written: str, end: str) -> bool:
    """Not so one folder's name alone, but a split's: ``images`` may be those of all splits."""
    alone = "/" not in end and not PurePosixPath(end).suffix and split_name(end) is None
    return not alone or len(_names(_slashed(written))) <= 1


def _plain(path: str) -> str:
    return path if "://" in path else os.path.normpath(path)


def _slashed(written: str) -> str:
    path = written.strip().replace("\\", "/")
    return path if "://" in path else str(PurePosixPath(path))


def read_yolo_data(path: str) -> YoloData:
    """Read the file, by its suffix.

    Raises:
        DatasetError: where it is missing, malformed, or its names are not those of classes 0, 1, ...
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _read_yaml(path)
    if suffix == ".data":
        return _read_darknet(path)
    return YoloData(path, _names_of_lines(path), [parent(path)])


def _read_yaml(path: str) -> YoloData:
    values = _mapping(path, _compose(path))
    if "names" not in values:
        raise DatasetError(f"{path}: no `names` of the classes; list them, the name of class 0 first")
    names = _yaml_names(path, values["names"])
    if "nc" in values and _text(values["nc"]) != str(len(names)):
        raise DatasetError(f"{path}: nc is {_text(values['nc'])!r}, but `names` are {len(names)}; correct one of them")
    entries = {key: _texts(path, node) for key, node in values.items() if split_name(key) is not None}
    folders = [parent(path)]
    root = _plain(join(folders[0], (_text(values["path"]) or "") if "path" in values else ""))
    if root != folders[0] and (is_remote(root) or is_folder(root)):
        folders.insert(0, root)
    return YoloData(path, _checked(path, names), folders, {key: listed for key, listed in entries.items() if listed})


_DIGITS = 9  # of the index of a class


def _compose(path: str) -> yaml.Node | None:
    try:
        return yaml.compose(read_text(path, "YOLO's data file"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DatasetError(not_yaml(path, error)) from None


def _mapping(path: str, node: yaml.Node | None) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise DatasetError(f"{path}: no data file of YOLO; it has `names`, and `train: FOLDER`, `val: FOLDER`")
    values: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if str(key.value) in values:
            raise DatasetError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is there twice; remove one")
        values[str(key.value)] = value
    return values


def _text(node: yaml.Node) -> str | None:
    """A value as it is written, whatever YAML would make of it (``no``, ``007``); nothing of what is none."""
    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        return None
    return str(node.value)


def _texts(path: str, node: yaml.Node) -> list[str]:
    """The path or paths of an entry."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    texts = [_text(each) for each in nodes]
    if isinstance(node, yaml.MappingNode) or (None in texts and len(texts) > 1):
        raise DatasetError(f"{path}, line {node.start_mark.line + 1}: expected a path or a list of paths")
    return [text for text in texts if text]


def _yaml_names(path: str, node: yaml.Node) -> dict[int, str | None]:
    if isinstance(node, yaml.SequenceNode):
        return {index: _text(each) for index, each in enumerate(node.value)}
    if not isinstance(node, yaml.MappingNode):
        raise DatasetError(f"{path}, line {node.start_mark.line + 1}: `names` must be a list, or `index: name`")
    named = {key: _text(value) for key, value in _mapping(path, node).items()}
    for key in named:
        if not key.isdecimal() or len(key) > _DIGITS:
            raise DatasetError(f"{path}, line {node.start_mark.line + 1}: `names`: {key!r} is no index of a class")
    return {int(key): name for key, name in named.items()}


def _read_darknet(path: str) -> YoloData:
    values: dict[str, str] = {}
    for number, line in read_lines(path, "darknet's data file"):
        key, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("#"):
            continue
        if not equals or not key or key in values:
            raise DatasetError(f"{path}, line {number}: expected `key = value`, each key once, got {line!r}")
        values[key] = value
    folders = list(dict.fromkeys([parent(path), parent(parent(path))]))  # darknet runs in the folder of cfg/ and data/
    if not values.get("names"):
        raise DatasetError(f"{path}: no `names = FILE` with the names of the classes, one a line")
    names = _names_of_lines(YoloData(path, {}, folders).locate(values["names"]))
    if values.get("classes", str(len(names))) != str(len(names)):
        raise DatasetError(f"{path}: classes = {values['classes']}, but there are {len(names)} names; correct one")
    entries = {key: [value] for key, value in values.items() if split_name(key) is not None and value}
    return YoloData(path, names, folders, entries)


def _names_of_lines(path: str) -> dict[int, str]:
    """Names in a file, one a line."""
    lines = read_lines(path, "list of class names")
    for place, (number, _) in enumerate(lines, 1):
        if number != place:
            raise DatasetError(f"{path}, line {place}: empty; a class's name is expected, one a line")
    return _checked(path, {number - 1: line for number, line in lines})


def _checked(path: str, names: Mapping[int, str | None]) -> dict[int, str]:
    """Names that are there, once each."""
    checked: dict[int, str] = {}
    owners: dict[str, int] = {}
    for index, name in sorted(names.items()):
        cleaned = clean_name(name or "")
        if not cleaned:
            raise DatasetError(f"{path}: class {index} has no name; give it one (in quotes, if it is called null)")
        if owners.setdefault(cleaned, index) != index:
            raise DatasetError(f"{path}: the classes {owners[cleaned]} and {index} are both called {cleaned!r}")
        checked[index] = cleaned
    return checked
