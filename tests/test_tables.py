"""Tables and lists: what a person wrote is read as it was meant, or refused with the line and what would mend it."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest
from cprfl.data.readers import csv_table, list_files, openimages
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.readers.openimages import OpenImagesDataset
from cprfl.errors import DatasetError
from tests.tables import names_of, put, read, shown, unknown

NAMES = ("dog", "boat", "traffic light", "Möhre", "C++/C#", "age <1y", "x-ray", "crème brûlée", "7", "fish & chips")
HEAD = "image,labels\n"

# What a writer writes is read back.


@st.composite
def dialects(draw: st.DrawFn) -> dict[str, Any]:
    """How a program saves a table."""
    return {
        "delimiter": draw(st.sampled_from(",;\t|")),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])),
        "end": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "sep_line": draw(st.booleans()),
        "index": draw(st.sampled_from([None, "", "Unnamed: 0"])),
        "trailing": draw(st.booleans()),
        "blank_lines": draw(st.booleans()),
        "blanks": draw(st.booleans()),
    }


def written(rows: Sequence[Sequence[str]], dialect: dict[str, Any]) -> bytes:
    """A table, header first, in a dialect."""
    buffer = io.StringIO()
    writer = csv.writer(
        buffer, delimiter=dialect["delimiter"], quoting=dialect["quoting"], lineterminator=dialect["end"]
    )
    if dialect["sep_line"]:
        buffer.write(f"sep={dialect['delimiter']}{dialect['end']}")
    for number, row in enumerate(rows):
        cells = [f" {cell} " for cell in row] if dialect["blanks"] else list(row)
        if dialect["index"] is not None:
            cells.insert(0, dialect["index"] if number == 0 else str(number - 1))
        writer.writerow([*cells, *([""] if dialect["trailing"] else [])])
        if dialect["blank_lines"]:
            buffer.write(dialect["end"])
    return buffer.getvalue().encode(dialect["encoding"])


def files(labels: Sequence[Any]) -> list[str]:
    return [f"my photos/Übung {number}.jpg" for number in range(len(labels))]


def numpys(names: list[str]) -> str:
    """A list as NumPy writes it: without commas."""
    return f"[{' '.join(map(repr, names))}]"


label_sets = st.lists(st.sets(st.sampled_from(NAMES), max_size=4), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(labels=label_sets, dialect=dialects(), separator=st.sampled_from([";", "|", ",", "\n", " ; "]))
def test_names_in_one_cell_are_read_back(labels: list[set[str]], dialect: dict[str, Any], separator: str) -> None:
    labels = [{"dog", "boat"}, *labels]  # which shows the separator
    assume(not (separator == "\n" and dialect["end"] == "\r"))  # Python's writer does not quote it then
    images = files(labels)
    rows = [("Image", "Labels"), *((i, separator.join(sorted(own))) for i, own in zip(images, labels, strict=True))]
    with tempfile.TemporaryDirectory() as folder:
        manifest = read(Path(folder), written(rows, dialect))
    assert shown(manifest) == dict(zip(images, labels, strict=True))
    assert not manifest.unknown


@settings(max_examples=40, deadline=None)
@given(labels=label_sets, dialect=dialects(), write=st.sampled_from([str, json.dumps, numpys]))
def test_lists_as_programs_write_them_are_read_back(
    labels: list[set[str]], dialect: dict[str, Any], write: Callable[[list[str]], str]
) -> None:
    assume(any(labels))
    images = files(labels)
    texts = [write(sorted(own)) for own in labels]
    with tempfile.TemporaryDirectory() as folder:
        rows = [("file_name", "tags"), *zip(images, texts, strict=True)]
        assert shown(read(Path(folder), written(rows, dialect))) == dict(zip(images, labels, strict=True))


CELLS = {
    "numbers": ("1", "0", "-1", ""),
    "decimals": ("1.0", "0.0", "-1.0", "nan"),
    "booleans": ("True", "FALSE", "?", ""),
    "words": ("yes", "no", "uncertain", ""),
    "commas": ("1,0", "0,0", "-1,0", ""),
}


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(), dialect=dialects(), cells=st.sampled_from(list(CELLS.values())),
    uncertain=st.sampled_from(["unknown", "negative", "positive"]),
    unmentioned=st.sampled_from(["negative", "unknown"]),
)  # fmt: skip
def test_columns_of_yes_and_no_are_read_back(
    data: st.DataObject, dialect: dict[str, Any], cells: tuple[str, ...], uncertain: str, unmentioned: str
) -> None:
    classes = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    codes = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=len(classes), max_size=len(classes)), max_size=6))
    codes = [[0] * len(classes), [1] * len(classes), *codes]  # so that each column says what it is
    images = files(codes)
    rows = [["image", *classes], *([i, *(cells[code] for code in own)] for i, own in zip(images, codes, strict=True))]
    with tempfile.TemporaryDirectory() as folder:
        manifest = read(Path(folder), written(rows, dialect), uncertain=uncertain, unmentioned=unmentioned)
    means = {0: "positive", 1: "negative", 2: uncertain, 3: unmentioned}
    assert manifest.class_names == tuple(classes)
    for found, what in ((shown, "positive"), (unknown, "unknown")):
        expected = [{name for name, code in zip(classes, own, strict=True) if means[code] == what} for own in codes]
        assert found(manifest) == dict(zip(images, expected, strict=True))


pair_sets = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["1", "0", "0.4"]), min_size=1, max_size=4), min_size=1,
    max_size=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(pairs=pair_sets, dialect=dialects(), uncertain=st.sampled_from(["unknown", "negative", "positive"]),
       unmentioned=st.sampled_from(["negative", "unknown"]), open_images=st.booleans())  # fmt: skip
def test_a_row_for_each_image_and_label_is_read_back(
    pairs: list[dict[str, str]], dialect: dict[str, Any], uncertain: str, unmentioned: str, open_images: bool
) -> None:
    pairs = [{"dog": "1", "boat": "1"}, *pairs]
    images = files(pairs)
    rows = [
        (image, "machine", name, sure) for image, own in zip(images, pairs, strict=True) for name, sure in own.items()
    ]
    content = written([("ImageID", "Source", "LabelName", "Confidence"), *rows], dialect)
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), {"train.csv": content})
        kind: type[DatasetConfig] = OpenImagesDataset if open_images else CsvDataset
        options = {"uncertain": uncertain, "unmentioned": unmentioned, "splits": {"train": f"{folder}/train.csv"}}
        manifest = kind.model_validate(options).read()
    means = {"1": "positive", "0": "negative", "0.4": uncertain, None: unmentioned}
    every = {name for own in pairs for name in own}
    assert set(manifest.class_names) == every
    for found, what in ((shown, "positive"), (unknown, "unknown")):
        expected = [{name for name in every if means[own.get(name)] == what} for own in pairs]
        assert found(manifest) == dict(zip(images, expected, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=1, max_size=6),
    between=st.sampled_from([" ", "\t", "  ", '" ']), end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), suffix=st.sampled_from([".jpg", ".JPEG", ""]),
)  # fmt: skip
def test_list_files_are_read_back(labels: list[set[int]], between: str, end: str, encoding: str, suffix: str) -> None:
    assume(any(labels))
    if not suffix and between != "\t":
        between = "\t"  # nothing else tells where the path ends
    quote = between[0] if between[0] == '"' else ""
    names = ["Möhre", "traffic light", "x 2", "dog", "7"]
    images = [f"my photos/Übung {number}{suffix}" for number in range(len(labels))]
    lines = [
        f"{quote}{image}{between}{' '.join(map(str, sorted(own)))}" for image, own in zip(images, labels, strict=True)
    ]
    named = [f"{name}{' ' if quote or between == '  ' else between}{number}" for number, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), {"l.txt": end.join(lines).encode(encoding), "n.txt": end.join(named).encode(encoding)})
        options = {"labels": f"{folder}/n.txt", "images": folder, "splits": {"train": f"{folder}/l.txt"}}
        manifest = ListFilesDataset.model_validate(options).read()
    assert manifest.class_names == tuple(names)
    assert manifest.labels == tuple(tuple(sorted(own)) for own in labels)
    assert manifest.image_ids == tuple(images)


# What names in a cell are.


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


# Open Images.


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


# List files.


def read_list(tmp_path: Path, text: str, labels: str = "cat 0\ntraffic light 1\ndog 2\n", **options: Any) -> Manifest:
    put(tmp_path, {"n.txt": labels, "l.txt": text})
    paths = {"labels": str(tmp_path / "n.txt"), "images": str(tmp_path), "splits": {"train": str(tmp_path / "l.txt")}}
    return ListFilesDataset.model_validate({**paths, **options}).read()


def test_paths_with_blanks_end_at_their_suffix_a_tab_or_where_there_is_a_file(tmp_path: Path) -> None:
    put(tmp_path, {"scan 2.png": b""})
    manifest = read_list(tmp_path, '# made by hand\nmy photos/IMG 0.jpg 0 2\nno suffix 1\t2\n"q r" 1\nscan 2 1\nx 0\n')
    assert manifest.image_ids == ("my photos/IMG 0.jpg", "no suffix 1", "q r", "scan 2.png", "x")
    assert manifest.labels == ((0, 2), (2,), (1,), (1,), (0,))
    assert any("1 lines are comments" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0 1 0\nb.jpg 1 1 0\n", "line 1: 0 1 0 looks like a 0 or 1 for each of the 3 classes"),
        ("scan 0 0\nscan 1 1\n", "line 1: image 'scan' is given an index twice; does its name end in a number"),
        ("scan 0 1\nscan 1 2\n", "line 2: image 'scan' is listed at .*line 1 too; does its name end in a number"),
        ("a.jpg,0,1\n", "line 1: expected `path index index ...`"),
        ("a.jpg, 0\n", "line 1: expected `path index index ...`"),
        ("a.jpg 0 0.5\n", "line 1: expected `path index index ...`"),
        ("my photo\n", "line 1: expected `path index index ...`"),
    ],
)
def test_lists_that_may_be_something_else_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_list(tmp_path, text)


def test_an_index_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    manifest = read_list(tmp_path, "a.jpg 2 2 0\nb.jpg 1\n")
    assert manifest.labels == ((0, 2), (1,))
    assert any("1 lines name an index twice" in note for note in manifest.notes)


def test_classes_choose_among_those_of_the_label_file(tmp_path: Path) -> None:
    manifest = read_list(tmp_path, "a.jpg 2 0\n", classes=["dog", "cat"])
    assert (manifest.class_names, manifest.labels) == (("dog", "cat"), ((0, 1),))
    with pytest.raises(DatasetError, match="line 1: expected `name index`"):
        read_list(tmp_path, "a.jpg 0\n", labels="cat, 0\n")


# What is proposed for a folder.

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
