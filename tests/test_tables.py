"""Tables: what a person wrote is read as it was meant, or refused with the line and what would mend it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cprfl.data.manifest import Manifest
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.errors import DatasetError
from tests.tables import HEAD, names_of, put, read, shown, unknown


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("a.jpg,clear haze\nb.jpg,clear\nc.jpg,haze water dry\n", ("clear;haze", "clear", "haze;water;dry")),
        ('a.jpg,"dog, boat"\nb.jpg,dog\n', ("dog;boat", "dog")),
        ('a.jpg,dog;\nb.jpg,"chair, folding;table"\n', ("dog", "chair, folding;table")),
        ("a.jpg,scab rust\nb.jpg,scab\nc.jpg,rust\n", ("scab;rust", "scab", "rust")),
        ("a.jpg,51 616\nb.jpg,7\n", ("51;616", "7")),
        ("a.jpg,dog/boat\nb.jpg,dog\nc.jpg,boat\n", ("dog;boat", "dog", "boat")),
        ('a.jpg,"[1, 2]"\nb.jpg,"[null, 3]"\nc.jpg,[]\n', ("1;2", "3", "")),
        ("a.jpg,['dog' 'traffic light']\nb.jpg,['dog']\n", ("dog;traffic light", "dog")),
        ('a.jpg,"{""choices"": [""dog"", ""boat""]}"\nb.jpg,traffic light\n', ("dog;boat", "traffic light")),
        ("a.jpg,null\nb.jpg,dog;None\nc.jpg,-\n", ("", "dog", "")),
        ("a.jpg,hot dog\nb.jpg,hot dog\nc.jpg,kite\n", ("hot dog", "hot dog", "kite")),
    ],
)  # fmt: skip
def test_names_are_separated_by_what_the_cells_show(tmp_path: Path, cells: str, expected: Sequence[str]) -> None:
    assert list(shown(read(tmp_path, HEAD + cells)).values()) == names_of(*expected)


@pytest.mark.parametrize(
    ("cells", "message", "mends"),
    [
        ("a.jpg,dog\nb.jpg,traffic light\n", r"line 3, column 'labels': 'traffic light' may be", {"separator": "none"}),
        ("a.jpg,red car\nb.jpg,red bus\nc.jpg,blue car\n", "'red car' may be", {"separator": " "}),
        ('a.jpg,"tench, Tinca"\nb.jpg,"eel, Anguilla"\n', "'tench, Tinca' may be", {"separator": "none"}),
        ('a.jpg,dog;boat\nb.jpg,"dog,boat"\n', "'dog,boat' may be", {"separator": ";"}),
        ("a.jpg,\"['dog', boat]\"\n", r"line 2, column 'labels': .* neither Python nor JSON", {}),
        ("a.jpg,[dog\n", "neither Python nor JSON", {}),
        ('a.jpg,"{""dog"": 1}"\n', "does not say which of its keys", {}),
        ("a.jpg,0\nb.jpg,1\n", "holds only 0 and 1; it may name a class", {"labels_column": "labels"}),
    ],
)
def test_cells_that_may_be_read_in_two_ways_are_refused(
    tmp_path: Path, cells: str, message: str, mends: dict[str, str]
) -> None:
    with pytest.raises(DatasetError, match=message) as refused:
        read(tmp_path, HEAD + cells)
    assert refused.value.settings == mends
    if mends:
        read(tmp_path, HEAD + cells, **mends)


def test_classes_decide_between_two_readings(tmp_path: Path) -> None:
    text = HEAD + "a.jpg,traffic light\nb.jpg,none\n"
    assert list(shown(read(tmp_path, text, classes=["none", "traffic light"])).values()) == names_of(
        "traffic light", "none"
    )
    apart = read(tmp_path, text, classes=["light", "traffic"])
    assert list(shown(apart).values()) == names_of("traffic;light", "")
    assert any("taken for no label: 'none' (1)" in note for note in apart.notes)


def test_what_separates_is_noted_where_it_is_not_plain(tmp_path: Path) -> None:
    assert "such as 'scab rust'" in read(tmp_path, HEAD + "a.jpg,scab rust\nb.jpg,scab\nc.jpg,rust\n").notes[0]
    assert (
        "one name, though some hold blanks: 'hot dog'"
        in read(tmp_path, HEAD + "a.jpg,hot dog\nb.jpg,hot dog\n").notes[0]
    )
    assert not read(tmp_path, HEAD + "a.jpg,hot dog;kite\n").notes


def test_a_separator_that_no_cell_holds_is_refused_where_another_separates(tmp_path: Path) -> None:
    text = HEAD + 'a.jpg,"dog,boat"\nb.jpg,dog\n'
    with pytest.raises(
        DatasetError, match="no cell holds dataset.separator ';', and names seem to be separated by ','"
    ):
        read(tmp_path, text, separator=";")
    assert read(tmp_path, text, separator="none").class_names == ("dog", "dog,boat")
    assert read(tmp_path, HEAD + "a.jpg,traffic light\n", separator=";").class_names == ("traffic light",)


# Which column is what.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Image Index,Finding Labels,Follow-up #,\na.png,Mass|No Finding,0,\nb.png,A,1,\n", ("Mass;No Finding", "A")),
        ("filename, dog, traffic light\na.jpg, 1, 0\nb.jpg, 0, 1\n", ("dog", "traffic light")),
        (",dog,boat\na.jpg,1,1\nb.jpg,0,1\n", ("dog;boat", "boat")),
        ("image,dog,boat\na.jpg,X,\nb.jpg,,x\n", ("dog", "boat")),
        ("image,dog,boat\na.jpg,1,-1\nb.jpg,-1,1\n", ("dog", "boat")),
        ("label,path\ndog,x/a.jpg\nboat,x/b.jpg\n", ("dog", "boat")),
        ("class_id,image,class_name\n3,a.jpg,dog\n4,b.jpg,boat\n", ("dog", "boat")),
        ("image,label,tag\na.jpg,17,dog\nb.jpg,18,boat\n", ("dog", "boat")),
        ("a.jpg;dog\nb.jpg;boat\n", ("dog", "boat")),
        ("filename,class,xmin\na.jpg,dog,1\na.jpg,dog,2\na.jpg,boat,9\nb.jpg,boat,3\n", ("dog;boat", "boat")),
        ("image,tags\na.jpg,dog\na.jpg,boat\nb.jpg,dog\nb.jpg,kite\n", ("dog;boat", "dog;kite")),
    ],
)  # fmt: skip
def test_columns_are_found_out(tmp_path: Path, text: str, expected: Sequence[str]) -> None:
    assert list(shown(read(tmp_path, text)).values()) == names_of(*expected)


def test_the_column_of_images_is_the_one_that_leads_to_files(tmp_path: Path) -> None:
    put(tmp_path, {"photos/k1.png": b"", "photos/k2.png": b""})
    text = "id,name,species\n1,k1,dog\n2,k2,boat\n"
    manifest = read(tmp_path, text, images=str(tmp_path / "photos"))
    assert shown(manifest) == {"k1.png": {"dog"}, "k2.png": {"boat"}}
    with pytest.raises(DatasetError, match=r"no column 'image' \(columns: id, name, species\).*dataset.image_column"):
        read(tmp_path, text.replace("k", "q"))


CHEXPERT = "Path,Sex,Age,No Finding,Edema\na.jpg,F,61,1.0,\nb.jpg,M,1,,-1.0\nc.jpg,M,70,0.0,1.0\n"


def test_columns_without_yes_and_no_are_no_classes_and_named(tmp_path: Path) -> None:
    manifest = read(tmp_path, CHEXPERT)
    assert manifest.class_names == ("No Finding", "Edema")
    assert list(unknown(manifest).values()) == names_of("", "Edema", "")
    assert any("no classes: 'Sex', 'Age'" in note for note in manifest.notes)
    assert read(tmp_path, CHEXPERT, classes=["Edema"]).class_names == ("Edema",)
    with pytest.raises(DatasetError, match="line 2: column 'Sex' holds 'F', not 0 or 1"):
        read(tmp_path, CHEXPERT, classes=["Sex"])
    with pytest.raises(DatasetError, match="no column for the class 'edma'"):
        read(tmp_path, CHEXPERT, classes=["edma"])


@pytest.mark.parametrize(
    ("text", "message", "mends"),
    [
        ("image,age,dog\na.jpg,1,0\nb.jpg,0,1\n", "'age' may be no class", {"classes": ["dog"]}),
        ("image,dog,boat\na.jpg,1,0\nb.jpg,maybe,1\n", "line 3: column 'dog' holds 'maybe', not 0 or 1", {}),
        ("image,dog,boat\na.jpg,1,0\nb.jpg,0.7,1\n", "line 3: column 'dog' holds '0.7', not 0 or 1 .a probability", {}),
        ("image,mood\na.jpg,fine\n", "and none holds 0 and 1; 'mood' may: name it", {"labels_column": "mood"}),
        ("image,by,mood\na.jpg,me,fine\n", "'by', 'mood' may: name it with dataset.labels_column", {}),
        (
            "image,label,category\na.jpg,dog,animal\n",
            "several columns could hold the labels",
            {"labels_column": "label"},
        ),
        ("image,dog,dog\na.jpg,1,0\n", "line 1: a column name is repeated: dog", {}),
        ("image,labels\na.jpg,dog,boat\n", "line 2: 2 columns in the header, 3 here", {}),
        ('image,labels\na.jpg,"dog\nb.jpg,boat\n', "line 2: .*quotation mark", {}),
        ("image,labels\na.jpg,do\0g\n", "line 2: a NUL character", {}),
        ("a.jpg,1,0\nb.jpg,1,1\n", "line 1: no header, for 'a.jpg' is an image", {}),
        ("image\na.jpg\n", "line 1: a single column", {}),
        ("image,label,confidence\na.jpg,dog,95\n", "line 2: column 'confidence' holds '95'", {}),
        ("image,labels,split\na.jpg,dog,train\nb.jpg,dog,later\n", "line 3: column 'split' holds 'later'", {}),
    ],
)
def test_what_cannot_be_decided_names_the_line_and_the_mend(
    tmp_path: Path, text: str, message: str, mends: dict[str, Any]
) -> None:
    with pytest.raises(DatasetError, match=message) as refused:
        read(tmp_path, text)
    assert refused.value.settings == mends
    if mends:
        read(tmp_path, text, **mends)


def test_class_columns_are_matched_by_name_and_must_be_in_every_file(tmp_path: Path) -> None:
    train = "image,dog,boat\na.jpg,1,0\nb.jpg,0,1\n"
    assert shown(read(tmp_path, {"train": train, "test": "image,boat,dog\nc.jpg,1,0\n"}))["c.jpg"] == {"boat"}
    fewer = {"train": train, "test": "image,boat\nc.jpg,1\n"}
    with pytest.raises(DatasetError, match="test.csv: class columns differ .* no 'dog'"):
        read(tmp_path, fewer)
    assert unknown(read(tmp_path, fewer, unmentioned="unknown"))["c.jpg"] == {"dog"}


def test_minus_one_says_no_only_where_nothing_else_in_the_table_does(tmp_path: Path) -> None:
    text = "image,dog,boat\na.jpg,1,-1\nb.jpg,-1,1\n"
    assert not read(tmp_path, text).unknown
    one_of_more = read(tmp_path, text.replace("boat", "boat,kite").replace("1\n", "1,0\n"), classes=["dog"])
    assert list(unknown(one_of_more).values()) == names_of("", "dog")


# Splits, groups, encodings.


def test_a_column_tells_the_splits_of_one_file(tmp_path: Path) -> None:
    text = "image,labels,subset\na.jpg,dog,Training\nb.jpg,dog,test\nc.jpg,dog,valid\n"
    assert read(tmp_path, text).splits == ("train", "test", "val")
    fastai = "fname,labels,is_valid\na.jpg,horse person,True\nb.jpg,person,False\nc.jpg,horse,False\n"
    assert read(tmp_path, fastai).splits == ("val", "train", "train")
    named = text.replace("subset", "when")
    assert set(read(tmp_path, named).splits) == {"train"}
    assert read(tmp_path, named, split_column="when").splits == ("train", "test", "val")
    with pytest.raises(ValueError, match="split_column tells the splits of one file"):
        read(tmp_path, {"train": named, "test": text}, split_column="when")


def test_a_column_tells_what_belongs_together(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,{('dog', 'boat')[n % 2]},p{n // 4}\n" for n in range(40))
    options = {"split": {"test": 0.3, "groups_by": "patient"}}
    manifest = read(tmp_path, f"image,labels,patient\n{rows}", **options)
    sides = {n // 4: set() for n in range(40)}  # type: dict[int, set[str]]
    for image, split in zip(manifest.image_ids, manifest.splits, strict=True):
        sides[int(image.split(".")[0]) // 4].add(split)
    assert all(len(side) == 1 for side in sides.values())
    with pytest.raises(DatasetError, match="line 42: the column 'patient' is empty"):
        read(tmp_path, f"image,labels,patient\n{rows}x.jpg,dog,\n", **options)


def test_an_encoding_that_was_guessed_is_named_with_an_example_and_refused_where_it_looks_wrong(tmp_path: Path) -> None:
    western = read(tmp_path, f"{HEAD}a.jpg,bâteau\n".encode("cp1252"))
    assert western.class_names == ("bâteau",)
    assert any("read as Windows-1252 ('bâteau', line 2)" in note for note in western.notes)
    for word, encoding in (("собака", "cp1251"), ("狗", "gb18030"), ("żółw", "cp1250"), ("犬", "shift_jis")):
        content = f"{HEAD}a.jpg,{word}\n".encode(encoding)
        with pytest.raises(DatasetError, match="line 2: .*name its encoding with dataset.encoding"):
            read(tmp_path, content)
        assert read(tmp_path, content, encoding=encoding).class_names == (word,)


def test_an_encoding_that_is_given_needs_no_mark_and_may_have_one(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        for mark in ("", "\ufeff"):
            content = f"{mark}{HEAD}a.jpg,Möhre\n".encode(encoding)
            assert shown(read(tmp_path, content, encoding=encoding)) == {"a.jpg": {"Möhre"}}
            assert shown(read(tmp_path, content)) == {"a.jpg": {"Möhre"}}
    with pytest.raises(DatasetError, match="no such encoding as 'nope'"):
        read(tmp_path, HEAD, encoding="nope")


def test_lines_of_delimiters_and_columns_without_anything_are_skipped(tmp_path: Path) -> None:
    manifest = read(tmp_path, "image,labels,,\na.jpg,dog,,\n,,,\n\n   \nb.jpg,boat\n")
    assert list(shown(manifest).values()) == names_of("dog", "boat")
    assert any("1 lines with nothing but delimiters are skipped" in note for note in manifest.notes)


def test_images_may_be_in_folders_of_the_splits_or_named_as_label_studio_does(tmp_path: Path) -> None:
    put(tmp_path, {"images/train/a.jpg": b"", "images/test/a.jpg": b"", "images/x y.jpg": b""})
    one_hot = "image,dog\na.jpg,1\n"
    manifest = read(tmp_path, {"train": one_hot, "test": one_hot}, images=str(tmp_path / "images"))
    assert manifest.image_ids == ("train/a.jpg", "test/a.jpg")
    exported = "image,id,choice\n/data/local-files/?d=images/x%20y.jpg,1,dog\n"
    assert read(tmp_path, exported).uris == (f"{tmp_path}/images/x y.jpg",)
    uploaded = "image,id,choice\n/data/upload/3/0a1b2c3d-x y.jpg,1,dog\n"
    assert read(tmp_path, uploaded, images=str(tmp_path / "images")).image_ids == ("x y.jpg",)


# Data as people have it.


def case(shared: Path, name: str, **options: Any) -> Manifest:
    (folder,) = (shared / "cases").glob(f"{name}-*")
    options = {"splits": {"train": "train.csv", "test": "test.csv"}, **options}
    return CsvDataset.model_validate(options, context={"data_root": str(folder)}).read()


def test_tags_separated_by_blanks_and_names_without_suffix(shared: Path) -> None:
    manifest = case(shared, "05", images="img")
    assert manifest.class_names == ("agriculture", "clear", "cloudy", "haze", "primary", "water")
    assert all(Path(uri).is_file() for uri in manifest.uris)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.csv", "test.csv"), ("oh_train.csv", "oh_test.csv"), ("t_train.tsv", "t_test.tsv"),
        ("sep_train.csv", "ok_test.csv"), ("ix_train.csv", "ix_test.csv"), ("ix2_train.csv", "ix2_test.csv"),
        ("blank_train.csv", "ok_test.csv"), ("tc_train.csv", "ok_test.csv"), ("tc2_train.csv", "tc2_test.csv"),
    ],
)  # fmt: skip
def test_delimiters_indices_and_blank_columns(shared: Path, train: str, test: str) -> None:
    manifest = case(shared, "09", splits={"train": train, "test": test})
    assert set(manifest.class_names) == {"dog", "boat"}
    assert {image: own for image, own in shown(manifest).items() if image in ("p00.jpg", "p01.jpg")} == {
        "p00.jpg": {"dog", "boat"}, "p01.jpg": {"boat"},
    }  # fmt: skip


def test_a_confidence_of_zero_is_absent_and_one_image_is_one_row(shared: Path) -> None:
    manifest = case(shared, "13", labels_column="LabelName")
    assert shown(manifest) == {
        "p00.jpg": {"/m/dog", "/m/kite"}, "p01.jpg": {"/m/boat"}, "p02.jpg": set(), "p03.jpg": set(),
        "p04.jpg": {"/m/boat", "/m/kite"}, "p05.jpg": set(),
    }  # fmt: skip
    assert {image: own for image, own in unknown(manifest).items() if own} == {"p02.jpg": {"/m/kite"}}
    single = case(shared, "13", splits={"train": "single.csv", "test": "stest.csv"})
    assert shown(single)["p01.jpg"] == set()
