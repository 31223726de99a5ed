"""`cprfl init`: whatever tool labelled the photographs, one manifest comes out; and the YAML that it writes runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.errors import ConfigError, DatasetError
from cprfl.experiment import load
from cprfl.reading import read_data
from cprfl.starting.reading import read_what_is_there
from tests.exports import EXPORTS, Labels, coco, photographs, table
from tests.helpers import call

PHOTOGRAPHS = photographs(40)


def says(manifest: Manifest) -> Labels:
    """What a manifest says of each photograph, by its file name."""
    named = {
        uri.rpartition("/")[2]: tuple(sorted(manifest.class_names[label] for label in labels))
        for uri, labels in zip(manifest.uris, manifest.labels, strict=True)
    }
    assert len(named) == len(manifest)
    return named


@pytest.mark.parametrize("export", EXPORTS)
def test_one_manifest_comes_out_of_every_export(
    export: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    EXPORTS[export](tmp_path / "export", PHOTOGRAPHS)
    config = tmp_path / "my.yaml"
    status, out, err = call(monkeypatch, capsys, "init", str(tmp_path / "export"), "--output", str(config))
    assert (status, err) == (0, "")
    experiment = load(config, [f"output_dir={tmp_path}/outputs"])
    manifest = read_data(experiment)
    assert says(manifest) == {name: tuple(sorted(labels)) for name, labels in PHOTOGRAPHS.items()}
    assert {*manifest.splits} == {"train", "test"}
    assert 6 <= manifest.splits.count("test") <= 10
    assert not manifest.unknown
    assert all(open_image(uri).size == (48, 36) for uri in manifest.uris)
    assert experiment.model.name == "auto"
    assert len(out.splitlines()) <= 16
    assert "40: " in out


def test_it_says_what_it_is_unsure_of_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path, PHOTOGRAPHS)
    text = (tmp_path / "labels.csv").read_bytes()
    again = text.splitlines()[1].replace(b"0;", b"99;", 1)
    (tmp_path / "labels.csv").write_bytes(text + again + b"\r\n")  # an image twice
    (tmp_path / "photos/photo 007.jpg").unlink()
    config = tmp_path / "my.yaml"
    status, out, _ = call(monkeypatch, capsys, "init", str(tmp_path / "labels.csv"), "--output", str(config))
    assert status == 0
    written = config.read_text()
    settings = yaml.safe_load(written)["dataset"]
    assert settings["repeated_images"] == "merge"
    assert settings["on_bad_image"] == "skip"
    assert "1 of 40 images are not there" in written
    assert "unsure    dataset.repeated_images" in out
    assert len(read_data(load(config, [f"output_dir={tmp_path}/outputs"]))) == 40


def test_a_file_that_is_there_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coco(tmp_path / "export", PHOTOGRAPHS)
    config = tmp_path / "my.yaml"
    config.write_text("mine")
    status, _, err = call(monkeypatch, capsys, "init", str(tmp_path / "export"), "--output", str(config))
    assert (status, config.read_text()) == (2, "mine")
    assert "is there already" in err


def test_a_folder_without_annotations_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="an empty folder"):
        read_what_is_there(tmp_path)
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(DatasetError, match="no annotations that can be read \\(files: 1 .md\\)"):
        read_what_is_there(tmp_path)
    with pytest.raises(DatasetError, match="no such file or folder"):
        read_what_is_there(tmp_path / "gone")


def test_splits_that_were_dealt_out_stay_when_the_data_set_grows(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    some = dict(list(PHOTOGRAPHS.items())[::2])
    for labels in (some, PHOTOGRAPHS):  # the others come between them
        root = tmp_path / "export"
        table(root, labels)
        config.write_text(
            f"name: grows\ndata_root: {root}\noutput_dir: {tmp_path}/outputs\n"
            "dataset: {name: csv, splits: {train: labels.csv}, split: {test: 0.3}}\n"
            "encoder: {name: open_clip, model: cprfl-embedded, pretrained: embedded}\n"
            "text_encoder: {name: random, dim: 8}\nmodel: {name: logistic_regression}\n"
        )
        manifest = read_data(load(config))
        splits = dict(zip(manifest.image_ids, manifest.splits, strict=True))
        if labels is some:
            before = splits
    assert {name: splits[name] for name in before} == before


def test_the_same_content_in_two_splits_is_said_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path / "export", PHOTOGRAPHS)
    photos = tmp_path / "export/photos"
    (photos / "photo 001.jpg").write_bytes((photos / "photo 000.jpg").read_bytes())
    lines = (tmp_path / "export/labels.csv").read_bytes().split(b"\r\n")
    for name, rows in (("train", [lines[1], *lines[3:]]), ("test", [lines[2]])):
        (tmp_path / f"export/{name}.csv").write_bytes(b"\r\n".join([lines[0], *rows]))
    config = tmp_path / "my.yaml"
    config.write_text(
        f"name: leaks\ndata_root: {tmp_path}/export\noutput_dir: {tmp_path}/outputs\n"
        "dataset: {name: csv, splits: {train: train.csv, test: test.csv}}\n"
        "encoder: {name: open_clip, model: cprfl-embedded, pretrained: embedded}\n"
        "text_encoder: {name: random, dim: 8}\nmodel: {name: logistic_regression}\n"
    )
    read_data(load(config))
    assert "1 images have the content of one in another split" in capsys.readouterr().err
    listed = (tmp_path / "outputs/leaks/same_content.csv").read_text().splitlines()
    assert listed[1] == "photos/photo 001.jpg,test,photos/photo 000.jpg,train"
    (photos / "photo 001.jpg").unlink()
    read_data(load(config))
    assert not (tmp_path / "outputs/leaks/same_content.csv").exists()


@pytest.mark.parametrize("heading", ["Schlagwörter", "Klasse", "what"])
def test_the_only_column_of_words_is_taken_for_the_labels_and_said(heading: str, tmp_path: Path) -> None:
    """Whatever language its name is of; of two nobody knows which, until it is said."""
    table(tmp_path, PHOTOGRAPHS)
    rows = [f"photos/{name};{','.join(labels) or 'none'}" for name, labels in PHOTOGRAPHS.items()]
    (tmp_path / "labels.csv").write_text("\n".join([f"Dateiname;{heading}", *rows]) + "\n")
    reading = read_what_is_there(tmp_path)
    assert reading.dataset["labels_column"] == heading
    assert "no column is called" in reading.unsure["labels_column"]
    by_two = [f"Dateiname;von;{heading}", *(row.replace(";", ";me;", 1) for row in rows)]
    (tmp_path / "labels.csv").write_text("\n".join(by_two) + "\n")
    with pytest.raises(DatasetError, match=f"'von', '{heading}' may: name it with dataset.labels_column"):
        read_what_is_there(tmp_path)
    told = read_what_is_there(tmp_path, [f"dataset.labels_column={heading}"])
    assert says(told.manifest) == says(reading.manifest)
    with pytest.raises(ConfigError, match=r"no such setting"):
        read_what_is_there(tmp_path, ["dataset.label_columns=a"])
    with pytest.raises(ConfigError, match=r"init takes settings of the data set"):
        read_what_is_there(tmp_path, ["train.epochs=3"])


def test_a_linked_folder_of_images_is_looked_into(tmp_path: Path) -> None:
    table(tmp_path / "set", PHOTOGRAPHS)
    (tmp_path / "set" / "photos").rename(tmp_path / "big")
    (tmp_path / "set" / "photos").symlink_to(tmp_path / "big")
    assert len(read_what_is_there(tmp_path / "set").manifest) == len(PHOTOGRAPHS)


def test_a_misspelt_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "x.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotaions": [], "categories": []}'
    )
    with pytest.raises(DatasetError, match=r"x.json: no list `annotations`"):
        read_what_is_there(tmp_path)
