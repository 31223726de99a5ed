"""The published list files of COCO-LT and VOC-LT: ``path idx idx ...``, and a label file ``name idx``."""

from __future__ import annotations

from typing import Literal

from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.text import read_lines
from cprfl.data.storage import DataPath, join
from cprfl.errors import DatasetError


class ListFilesDataset(DatasetConfig):
    """``labels`` names the classes, ``splits`` the list file of each split; its paths are relative to ``images``."""

    name: Literal["list_files"] = "list_files"
    labels: DataPath
    images: DataPath = ""
    splits: dict[SplitName, DataPath]

    def read_annotations(self) -> Annotations:
        """Class names in the label file's order, and the rows of each list file."""
        class_names = read_label_file(self.labels)
        if self.classes is not None and self.classes != class_names:
            both = zip([*self.classes, "nothing"], [*class_names, "nothing"], strict=False)
            given, listed = next(pair for pair in both if pair[0] != pair[1])
            raise DatasetError(
                f"{self.labels}: disagrees with dataset.classes ({len(class_names)} and {len(self.classes)} classes; "
                f"the first difference is {listed!r} and {given!r}); mend one, or leave dataset.classes out"
            )
        rows = {split: self._read_list(path, class_names) for split, path in self.splits.items()}
        return Annotations(class_names, rows)

    def _read_list(self, path: str, class_names: list[str]) -> list[Row]:
        rows = []
        for number, line in read_lines(path, "list of images"):
            where = f"{path}, line {number}"
            image, *fields = line.split()
            try:
                labels = [int(field) for field in fields]
            except ValueError:
                raise DatasetError(f"{where}: expected `path index index ...`, got {line[:80]!r}") from None
            outside = [label for label in labels if not 0 <= label < len(class_names)]
            if outside:
                raise DatasetError(
                    f"{where}: class index {outside[0]} is out of range; {self.labels} has 0 to {len(class_names) - 1}"
                )
            rows.append(Row(image, join(self.images, image), [class_names[label] for label in labels], where))
        return rows


def read_label_file(path: str) -> list[str]:
    """Class names of a file of ``name index`` lines, ordered by index.

    Raises:
        DatasetError: where a line has no index, or the indices are not 0, 1, 2, ... each once.
    """
    names: dict[int, str] = {}
    for number, line in read_lines(path, "label file"):
        name, _, index = line.rpartition(" ")
        if not name or not index.isdigit():
            raise DatasetError(f"{path}, line {number}: expected `name index`, got {line!r}")
        if int(index) in names:
            raise DatasetError(f"{path}, line {number}: index {index} is taken by {names[int(index)]!r} already")
        names[int(index)] = name.strip()
    missing = [index for index in range(len(names)) if index not in names]
    if missing:
        raise DatasetError(f"{path}: no class has index {missing[0]}; indices must run from 0 without a gap")
    return [names[index] for index in range(len(names))]
