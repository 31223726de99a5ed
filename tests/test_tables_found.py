"""Tables, lists and files of Open Images in a folder are proposed as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprfl.data.readers import csv_table, list_files, openimages
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.readers.openimages import OpenImagesDataset
from cprfl.errors import DatasetError
from tests.tables import HEAD, put

READERS = (csv_table, openimages, list_files)
PHOTOS: dict[str, str | bytes] = {f"img/{n}.jpg": b"" for n in range(4)}
FOLDERS: dict[str, tuple[Any, dict[str, str | bytes], dict[str, Any]]] = {
    "names": (csv_table, {"labels.csv": HEAD + "0.jpg,dog\n1.jpg,dog;boat\n", **PHOTOS},
              {"splits": {"train": "labels.csv"}, "images": "img", "image_column": "image", "labels_column": "labels"}),
    "no suffix, elsewhere": (csv_table, {"meta/all.tsv": "id\ttag\n/home/me/0\tdog\n/home/me/1\tboat\n", **PHOTOS},
                             {"splits": {"train": "meta/all.tsv"}, "images": "img"}),
    "roboflow": (csv_table, {f"{split}/{name}": "filename, dog, boat\n0.jpg, 1, 0\n" if name[0] == "_" else b""
                             for split in ("train", "valid", "test") for name in ("_classes.csv", "0.jpg")},
                 {"splits": {"train": "train/_classes.csv", "val": "valid/_classes.csv", "test": "test/_classes.csv"}}),
    "folders of splits": (csv_table, {**{f"{s}.csv": HEAD + "0.jpg,dog\n" for s in ("train", "test")},
                                      "img/train/0.jpg": b"", "img/test/0.jpg": b""},
                          {"splits": {"train": "train.csv", "test": "test.csv"}, "images": "img"}),
    "split column": (csv_table, {"all.csv": "image,dog,set\n0.jpg,1,train\n1.jpg,0,test\n", **PHOTOS},
                     {"split_column": "set"}),
    "test without labels": (csv_table, {"train.csv": HEAD + "0.jpg,dog\n", "test.csv": "image,width\n1.jpg,640\n",
                                        **PHOTOS}, {"splits": {"train": "train.csv"}}),
    "open images": (openimages, {"train.csv": "ImageID,LabelName,Confidence\n0,/m/1,1\n", "names.csv": "/m/1,Dog\n",
                                 **PHOTOS},
                    {"splits": {"train": "train.csv"}, "descriptions": "names.csv", "images": "img"}),
    "lists": (list_files, {"train.txt": "img/0.jpg 0\nimg/1.jpg 1\n", "test.txt": "img/2.jpg 1\n",
                           "classes.txt": "dog 0\nboat 1\n", **PHOTOS},
              {"splits": {"train": "train.txt", "test": "test.txt"}, "labels": "classes.txt", "images": "."}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_proposed_as_it_is_read(kind: str, tmp_path: Path) -> None:
    reader, content, expected = FOLDERS[kind]
    put(tmp_path, content)
    tree = Tree.of(tmp_path)
    (proposal,) = reader.discover(tree)
    assert dict(proposal.dataset) == {**proposal.dataset, **expected}
    kinds: list[type[DatasetConfig]] = [CsvDataset, OpenImagesDataset, ListFilesDataset]
    (dataset,) = (k for k in kinds if k.model_fields["name"].default == proposal.dataset["name"])
    manifest = dataset.model_validate(dict(proposal.dataset), context={"data_root": str(tmp_path)}).read()
    assert all(Path(uri).is_file() for uri in manifest.uris)
    assert not [found for other in READERS if other is not reader for found in other.discover(tree)]


def test_nothing_is_proposed_for_other_files_but_the_file_that_was_pointed_at(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"results.csv": "epoch,loss\n1,0.5\n", "sizes.csv": "image,width\n0.jpg,640\n", "a.txt": "hello\n", **PHOTOS},
    )
    assert not [found for reader in READERS for found in reader.discover(Tree.of(tmp_path))]
    (proposal,) = csv_table.discover(Tree.of(tmp_path / "sizes.csv"))
    with pytest.raises(DatasetError, match="column 'width' holds '640'"):
        CsvDataset.model_validate(dict(proposal.dataset), context={"data_root": str(tmp_path)}).read()
