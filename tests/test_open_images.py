"""Open Images: what is verified absent is negative, and what nobody looked for is unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprfl.data.manifest import Manifest
from cprfl.data.readers.openimages import OpenImagesDataset
from cprfl.errors import DatasetError
from tests.tables import put, shown, unknown


def open_images(tmp_path: Path, rows: str, descriptions: str = "", **options: Any) -> Manifest:
    put(tmp_path, {"train.csv": f"ImageID,Source,LabelName,Confidence\n{rows}", "names.csv": descriptions})
    described = {"descriptions": str(tmp_path / "names.csv")} if descriptions else {}
    return OpenImagesDataset.model_validate(
        {"splits": {"train": str(tmp_path / "train.csv")}, **described, **options}
    ).read()


def test_open_images_verified_absent_is_negative_and_never_named_is_unknown(tmp_path: Path) -> None:
    rows = "p0,verification,/m/1,1\np0,verification,/m/2,0\np1,machine,/m/2,0.7\np2,verification,/m/3,1\n"
    names = "LabelName,DisplayName\n/m/1,Dog\n/m/2,Boat\n/m/9,Kite\n"
    put(tmp_path, {"p0.jpg": b"", "p1.jpg": b"", "p2.jpg": b""})
    manifest = open_images(tmp_path, rows, names)
    assert manifest.class_names == ("/m/3", "Boat", "Dog")
    assert shown(manifest) == {"p0.jpg": {"Dog"}, "p1.jpg": set(), "p2.jpg": {"/m/3"}}
    assert unknown(manifest) == {"p0.jpg": {"/m/3"}, "p1.jpg": {"/m/3", "Boat", "Dog"}, "p2.jpg": {"Boat", "Dog"}}
    assert any("1 classes are not described, such as '/m/3'" in note for note in manifest.notes)
    known = open_images(tmp_path, rows, names, unmentioned="negative", uncertain="positive")
    assert not known.unknown
    assert shown(known)["p1.jpg"] == {"Boat"}


def test_open_images_rows_that_disagree_are_uncertain_and_two_classes_of_one_name_stay_two(tmp_path: Path) -> None:
    rows = "p0,a,/m/1,1\np0,b,/m/1,0\np0,c,/m/2,1\np1,a,/m/1,1\np1,machine,/m/1,0.5\n"
    manifest = open_images(tmp_path, rows, "/m/1,Trunk\n/m/2,Trunk\n", unmentioned="negative")
    assert manifest.class_names == ("Trunk (/m/1)", "Trunk (/m/2)")
    assert list(shown(manifest).values()) == [{"Trunk (/m/2)"}, {"Trunk (/m/1)"}]
    assert unknown(manifest)["p0"] == {"Trunk (/m/1)"}
    with pytest.raises(DatasetError, match="names.csv, line 2: expected `code,name`"):
        open_images(tmp_path, rows, "/m/1,Trunk\n/m/2\n")
