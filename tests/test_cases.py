"""Data as people have it: the cases of shared/, each with what comes out of it.

Labels stand as `image: names`, with ? before a name of which nobody knows; small copies of the same dialects are in the
tests of the readers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.errors import DatasetError, UserError
from cprfl.experiment import load
from cprfl.preparation import prepare

SHORT = {
    "02": "02-roboflow-root-category", "02b": "02b-roboflow-root-same-name", "04": "04-label-studio-coco-paths",
    "05": "05-planet-space-tags-no-extension", "07": "07-chexpert-uncertain-blank",
    "09": "09-csv-semicolon-tab-encoding", "10": "10-voc-png-and-names", "11": "11-voc-gb2312",
    "12": "12-coco-annotation-without-id", "13": "13-open-images-long-table", "17": "17-mlflow-metric-names-collide",
    "18": "18-same-names-in-split-folders", "19": "19-list-file-spaces", "20": "20-coco-categories-differ",
    "24": "24-unicode-normal-forms", "25": "25-class-without-training-image", "26": "26-numeric-category-names",
    "28": "28-new-class-later-and-missing-images",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Overrides of a case's experiment, and the labels that must come out, or what must be said."""

    name: str
    settings: tuple[str, ...] = ()
    labels: str = ""
    said: str = ""
    notes: tuple[str, ...] = field(default=())


def files(train: str, test: str) -> tuple[str, ...]:
    return f"dataset.splits.train={train}", f"dataset.splits.test={test}"


ROBOFLOW = "img0: kite | img1: kite, boat | img2: boat | img3: dog | img4: | img5: kite, dog"
CHEXPERT = (
    "patient00: No Finding | patient01: ?Enlarged Heart, Edema | patient02: Enlarged Heart, ?Pleural Other"
    " | patient03: ?Edema, Pleural Other | patient04: No Finding | patient05: Enlarged Heart | patient06: Edema"
)
FRENCH = "p00: chien, bâteau | p01: bâteau | p02: | p03: chien | p04: bâteau"
ONE_HOT = "p00: dog, boat | p01: boat | p02: | p03: dog"
INDEXED = "p00: dog, boat | p01: boat | p03: dog, boat | p04: dog"
CASES = [
    Case("02", (), f"{ROBOFLOW} | img10: boat | img11: kite, dog | img12:"),
    Case("02b", (), f"{ROBOFLOW} | img10: boat | img11: kite, dog | img12:"),
    Case("04", (), "aa00-shot: boat | aa01-shot: dog | aa02-shot: boat, dog | aa03-shot: | bb04-shot: boat"
         " | bb05-shot: dog", notes=("slashes for backslashes", "by the file's name alone")),
    Case("05", (), "train_0: haze, primary | train_1: agriculture, clear, primary, water | train_2: clear, primary"
         " | train_3: clear, primary | train_4: clear, primary | train_5: cloudy", notes=(".jpg files",)),
    Case("07", (), CHEXPERT),
    Case("07", files("train_labels.csv", "test_labels.csv"), CHEXPERT),
    Case("07", (*files("train_filled.csv", "test_filled.csv"), "dataset.uncertain=positive"),
         CHEXPERT.replace("?", "")),
    Case("07", files("train_bool.csv", "test_bool.csv"), "patient00: No Finding | patient01: Edema"
         " | patient02: Enlarged Heart | patient03: Pleural Other | patient04: No Finding"
         " | patient05: Enlarged Heart | patient06: Edema"),
    Case("07", ("dataset.classes=[Edema, Pleural Other]", "dataset.uncertain=negative"), "patient00: | patient01: Edema"
         " | patient02: | patient03: Pleural Other | patient04: | patient05: | patient06: Edema"),
    Case("09", files("bom_train.csv", "bom_test.csv"), FRENCH),
    Case("09", files("cp1252_train.csv", "cp1252_test.csv"), FRENCH),
    Case("09", files("utf16_train.csv", "utf16_test.csv"), FRENCH),
    Case("09", files("oh_train.csv", "oh_test.csv"), ONE_HOT),
    Case("09", files("t_train.tsv", "t_test.tsv"), ONE_HOT),
    Case("09", files("ix_train.csv", "ix_test.csv"), INDEXED),
    Case("09", files("ix2_train.csv", "ix2_test.csv"), INDEXED),
    Case("09", files("tc2_train.csv", "tc2_test.csv"), "p00: dog, boat | p01: boat | p03: dog, boat"),
    Case("09", files("tc_train.csv", "ok_test.csv"), "p00: dog, boat | p01: boat | p03: dog | p04: boat"),
    Case("09", files("sep_train.csv", "ok_test.csv"), "p00: dog, boat | p01: boat | p03: dog | p04: boat"),
    Case("09", files("sp_train.csv", "ok_test.csv"), said="'boat' .*, 'Boat' .*ignore_case"),
    Case("09", (*files("sp_train.csv", "ok_test.csv"), "dataset.ignore_case=true"),
         "p00: dog, boat | p01: boat | p02: boat | p03: dog | p04: boat"),
    Case("09", (*files("meta_train.csv", "meta_test.csv"), "dataset.classes=[dog, boat]"),
         "p00: dog, boat | p01: boat | p03: dog, boat | p04: boat"),
    Case("10", (), "plate1: plate | plate2: plate, screw | plate4: | plate5: plate"),
    Case("10", ("dataset.classes=[plate]",),
         said="plate2.*unknown class 'screw'.*dataset.classes"),
    Case("11", (), "a1: 车 | a2: 车, 船 | a3: 船"),
    Case("12", (), f"{ROBOFLOW} | img10: boat | img11: kite, dog | img12:"),
    Case("17", (), "p00: age <1y, C++/C# | p01: age >1y, C++/C-- | p02: age <1y, fish & chips"
         " | p03: age >1y, 鱼/船 klein | p04: | p05: age <1y, C++/C#, .. | p06: C++/C--, a//b"
         " | p12: age <1y, C++/C#, a//b | p13: age >1y, C++/C--, .. | p14: | p15: fish & chips, 鱼/船 klein"),
    Case("18", (), "0000: dog | 0001: boat | 0002: dog, boat | 0003: | 0000: boat | 0001: dog"),
    Case("18", (*files("w_train.csv", "w_test.csv"), "dataset.images=."), "0000: dog | 0001: boat | 0000: boat"),
    Case("18", files("s3_train.csv", "s3_test.csv"), "a: dog | b: boat | c: boat"),
    Case("19", (), "IMG 0: cat | IMG 1: cat, traffic light | IMG 2: traffic light"),
    Case("19", ("dataset.splits.train=tt.txt", "dataset.labels=lt.txt"), "a: cat | b: cat, traffic light"
         " | IMG 2: traffic light"),
    Case("20", (), f"{ROBOFLOW} | img10: boat | img11: kite, dog | img12:"),
    Case("20", ("dataset.splits.test.annotations=test/fewer.json",), f"{ROBOFLOW} | img10: boat | img11: dog | img12:",
         notes=("no test image shows the class 'kite'",)),
    Case("20", ("dataset.classes=[dog, kite, boat]",), f"{ROBOFLOW} | img10: boat | img11: kite, dog | img12:"),
    Case("24", (), "Gemüse1: Möhre | Café2: Möhre, Kohl | Äpfel3: Möhre | x4: Kohl"),
    Case("25", (), "p00: dog | p01: boat | p02: dog, boat | p03: | p04: dog, kite | p05: boat", notes=("'kite'",)),
    Case("25", ("dataset.classes_without_images=leave_out",), "p00: dog | p01: boat | p02: dog, boat | p03: | p04: dog"
         " | p05: boat", notes=("'kite'; left out",)),
    Case("25", ("dataset.classes_without_images=error",), said="'kite'.*classes_without_images"),
    Case("26", (), "img0: 3001 | img1: 3001, 3002 | img2: 3002 | img3: 3003 | img4: | img5: 3001, 3003"
         " | img10: 3002 | img11: 3001, 3003 | img12:"),
    Case("26", ("dataset.splits.test.annotations=test/absent.json",), "img0: 3001 | img1: 3001, 3002 | img2: 3002"
         " | img3: 3003 | img4: | img5: 3001, 3003 | img10: 3002 | img11: 3001 | img12:", notes=("'3003'",)),
    Case("13", (), "p00: dog, kite | p01: boat | p02: ?kite | p03: | p04: boat, kite | p05:"),
    Case("13", ("dataset.unmentioned=unknown",), "p00: dog, kite | p01: boat, ?kite | p02: ?boat, ?dog, ?kite"
         " | p03: ?boat, ?dog | p04: boat, ?dog, kite | p05: ?boat, ?kite"),
    Case("13", (*files("single.csv", "stest.csv"),), "p00: dog | p01: | p02: | p04: boat | p05:"),
    Case("28", (), "p00: dog | p01: boat | p02: dog, boat | p03: | p04: dog | p05: dog, kite | p06: kite | gone7: kite"
         " | p10: dog | p11: boat | p12: | p13: kite | p14: boat, kite"),
]  # fmt: skip


def in_short(manifest: Manifest) -> str:
    """What a manifest says: the images by their files' stems; a CheXpert image by its patient; no /m/ before names."""
    images = []
    for row, image_id in enumerate(manifest.image_ids):
        stem = image_id.rpartition("/")[2].rpartition(".")[0] or image_id.rpartition("/")[2]
        stem = image_id.split("/")[1] if "patient" in image_id else stem
        unknown = manifest.unknown[row] if manifest.unknown else ()
        labels = dict.fromkeys(manifest.labels[row], "") | dict.fromkeys(unknown, "?")
        names = [mark + manifest.class_names[label].removeprefix("/m/") for label, mark in labels.items()]
        images.append(f"{stem}: {', '.join(sorted(names, key=lambda name: name.lstrip('?')))}".strip())
    return " | ".join(images)


def ordered(labels: str) -> str:
    """The same with the names of each image in order."""
    images = []
    for image in labels.split(" | "):
        stem, _, names = image.partition(":")
        listed = sorted((name for name in names.strip().split(", ") if name), key=lambda name: name.lstrip("?"))
        images.append(f"{stem.strip()}: {', '.join(listed)}".strip())
    return " | ".join(images)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {' '.join(case.settings)}")
def test_a_case_is_read_right_or_refused_by_name(case: Case, shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / SHORT[case.name]
    settings = [f"data_root={folder}", f"output_dir={tmp_path}", *case.settings]
    config = "voc.yaml" if case.settings == ("voc",) else "exp.yaml"
    if case.said:
        with pytest.raises(DatasetError, match=case.said):
            load(folder / config, settings).dataset.read()
        return
    manifest = load(folder / config, settings).dataset.read()
    assert in_short(manifest) == ordered(case.labels)
    for note in case.notes:
        assert any(note in said for said in manifest.notes), manifest.notes
    if case.settings[:1] != ("dataset.splits.train=s3_train.csv",) and case.name not in ("18", "19", "28"):
        assert all(Path(uri).is_file() for uri in manifest.uris)


def test_other_classes_than_vocs_twenty_point_to_the_setting(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / SHORT["10"]
    with pytest.raises(DatasetError, match=r"plate1.xml.*'plate'.*dataset\.classes"):
        load(folder / "exp2.yaml", [f"data_root={folder}", f"output_dir={tmp_path}"]).dataset.read()


def test_two_folders_of_voc_of_one_name(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / SHORT["28"]
    manifest = load(folder / "voc.yaml", [f"data_root={folder}", f"output_dir={tmp_path}"]).dataset.read()
    assert in_short(manifest) == ordered("a1: 车 | a2: 车, 船 | a1: 车 | a2: 车, 船")
    assert len(set(manifest.image_ids)) == 4


def test_one_file_under_two_ids_is_named_or_joined(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / SHORT["12"]
    settings = [
        f"data_root={folder}", f"output_dir={tmp_path}",
        "dataset.splits.train.annotations=f.json",
    ]  # fmt: skip
    with pytest.raises(DatasetError, match=r"'a\.jpg' is listed twice"):
        load(folder / "exp.yaml", settings).dataset.read()
    joined = load(folder / "exp.yaml", [*settings, "dataset.repeated_images=merge"]).dataset.read()
    assert in_short(joined.split("train")) == "a: boat, dog"


def test_columns_that_are_no_classes_are_named(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / SHORT["09"]
    settings = [f"data_root={folder}", f"output_dir={tmp_path}", *files("meta_train.csv", "meta_test.csv")]
    try:
        manifest = load(folder / "exp.yaml", settings).dataset.read()
    except DatasetError as error:
        assert "dataset.classes" in str(error)
    else:
        assert manifest.class_names == ("dog", "boat")
        assert any("'id'" in note and "'age'" in note for note in manifest.notes)


def test_missing_images_are_said_before_anything_is_encoded(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / SHORT["28"]
    settings = [f"data_root={folder}", f"output_dir={tmp_path}", "dataset.splits.train=gone.csv"]
    with pytest.raises(UserError, match=r"2 of 7 images are missing.*\n.*x1.jpg: file not found"):
        prepare(load(folder / "exp.yaml", settings))
    everything = [*settings, "dataset.splits.test=gone.csv", "dataset.images=pictures"]
    with pytest.raises(DatasetError, match="leak"):
        prepare(load(folder / "exp.yaml", everything))
    with pytest.raises(
        DatasetError, match=r"none of the 13 images is there, the first of them .*pictures/p00.jpg; there is"
    ):
        prepare(load(folder / "exp.yaml", [*settings[:2], "dataset.images=pictures"]))


@pytest.mark.parametrize(
    "name", ["sat.jpg", "t.tif", "grey.png", "w.webp", "b.bmp", "u16.png", "cmyk.jpg", "exif6.jpg"]
)
def test_odd_images_are_read(name: str, shared: Path) -> None:
    assert open_image(str(shared / "cases/22-large-and-odd-images" / name)).mode == "RGB"


def test_a_float_image_is_refused_by_name(shared: Path) -> None:
    with pytest.raises(UserError, match="value_range"):
        open_image(str(shared / "cases/22-large-and-odd-images/float.tif"))


@pytest.mark.parametrize("folder", ["100%", "a=b", "d: e", "p${x}", "photos #2", "photos [new]", "{x}", "~t"])
def test_a_folder_is_taken_as_it_is_written(folder: str, shared: Path, tmp_path: Path) -> None:
    case = shared / "cases/06-set-override-special-chars"
    experiment = load(case / "exp.yaml", [f"data_root={case}/{folder}", f"output_dir={tmp_path}/{folder}"])
    assert experiment.output_dir == f"{tmp_path}/{folder}"
    assert in_short(experiment.dataset.read()) == "p00: boat, dog | p01: boat | p02: dog | p03: boat"
