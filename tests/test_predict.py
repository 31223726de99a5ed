"""Prediction: of files, folders, patterns and lists; what is written, whatever the images are and whoever ends it."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cprfl.data.images import BadImage, Reading, open_image
from cprfl.errors import DatasetError, UnreadableImageError
from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import load
from cprfl.inference import streaming
from cprfl.inference.outputs import csv_output, json_output, parquet_output, text_output
from cprfl.inference.predictor import Predictor
from cprfl.inference.pyfunc import ImageClassifier
from cprfl.inference.sources import find_images
from cprfl.inference.streaming import ScoredImage, stream_scores
from cprfl.plain import no_formula
from cprfl.preparation import prepare
from cprfl.recipe import train
from tests.helpers import call, write_config

NAMES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def checkpoint(photos: Path, database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with thresholds that differ from class to class."""
    folder = tmp_path_factory.mktemp("predict")
    experiment = load(write_config(folder / "small.yaml", photos, database))
    trained = train(experiment, prepare(experiment))
    slope, intercept = np.array([0.5, 1.0, 2.0]), np.array([-0.2, 0.1, 0.3])
    Decisions(NAMES, slope, intercept, np.array([0.2, 0.5, 0.9]), "a test").write(trained)
    return trained


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor.load(checkpoint)


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Photos in two folders, one broken, one cut off, and a file that is no image."""
    found = tmp_path / "in"
    (found / "below").mkdir(parents=True)
    for number in range(20):
        shutil.copy(photos / f"{number:02d}.png", found / ("below" if number % 2 else ".") / f"{number:02d}.png")
    (found / "05.png").write_bytes(b"no image")
    (found / "below" / "cut.png").write_bytes((photos / "20.png").read_bytes()[:300])
    (found / "notes.txt").write_text("not an image, and not called like one")
    return found


def test_probabilities_are_calibrated_logits(predictor: Predictor, photos: Path) -> None:
    images = [open_image(str(photos / f"{number:02d}.png")) for number in range(3)]
    pixels = [predictor.encoder.transform(image) for image in images]
    logits = predictor.logits([image[None] for image in pixels]).numpy()
    expected = 1 / (1 + np.exp(-(predictor.decisions.slope_C * logits + predictor.decisions.intercept_C)))
    assert np.allclose(predictor.predict(images), expected, atol=1e-6)
    assert predictor.predict([]).shape == (0, 3)


def test_a_folder_is_scored_in_order_and_bad_images_stand_where_they_are(predictor: Predictor, folder: Path) -> None:
    uris = find_images([str(folder)])
    assert len(uris) == 22
    assert uris == sorted(uris, key=lambda uri: ("/below/" in uri, uri))
    found = [image for batch in stream_scores(predictor, uris) for image in batch]
    assert [image.uri for image in found] == uris
    assert {Path(image.uri).name for image in found if isinstance(image, BadImage)} == {"05.png", "cut.png"}
    scored = [image for image in found if isinstance(image, ScoredImage)]
    expected = predictor.predict([open_image(image.uri) for image in scored])
    assert np.allclose([image.probability_C for image in scored], expected, atol=1e-5)


def test_each_image_is_read_once_and_few_are_in_memory(
    predictor: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    lock = threading.Lock()

    def counted(uri: str, reading: object) -> Image.Image:
        with lock:
            opened.append(uri)
        return open_image(str(photos / "00.png"))

    monkeypatch.setattr(streaming, "open_image", counted)
    uris, size = [f"{number}.png" for number in range(150)], predictor.batch_size
    for number, batch in enumerate(stream_scores(predictor, uris, looks=True), start=1):
        assert len(opened) <= number * size + 2 * size + 1
        assert len(batch) in (size, 150 % size)
    assert sorted(opened) == sorted(uris)


def test_sources_are_files_folders_patterns_and_lists(folder: Path, tmp_path: Path) -> None:
    one, all_below = str(folder / "00.png"), find_images([str(folder / "below")])
    assert find_images([one, one, str(folder / "below")]) == [one, *all_below]
    assert find_images([f"{folder}/**/1*.png"]) == find_images([f"{folder}/1*.png", f"{folder}/*/1*.png"])
    odd = tmp_path / "odd [1]*.png"
    odd.write_bytes(b"")
    assert find_images([str(odd)]) == [str(odd)]
    assert find_images(["nowhere.jpg", "https://example.org/a.jpg"]) == ["nowhere.jpg", "https://example.org/a.jpg"]
    table = tmp_path / "list.csv"
    table.write_text(f"number;path\n1;in/00.png\n2;{folder}/02.png\n3;\n4;s3://bucket/a.png\n")
    assert find_images([str(table)]) == [f"{tmp_path}/in/00.png", f"{folder}/02.png", "s3://bucket/a.png"]


def test_sources_in_a_bucket(bucket: str, photos: Path, predictor: Predictor) -> None:
    from cprfl.data.storage import Folder

    for name in ("a/00.png", "a/b/01.png", "a/notes.txt"):
        Folder(f"{bucket}/{name.rpartition('/')[0]}").write(Path(name).name, (photos / "00.png").read_bytes())
    assert find_images([f"{bucket}/a"]) == [f"{bucket}/a/00.png", f"{bucket}/a/b/01.png"]
    assert find_images([f"{bucket}/a/*.png"]) == [f"{bucket}/a/00.png"]
    (batch,) = stream_scores(predictor, [f"{bucket}/a/00.png", f"{bucket}/a/gone.png"])
    assert isinstance(batch[0], ScoredImage)
    assert isinstance(batch[1], BadImage)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", "an empty folder; "),
        ("texts", "none of its 1 files is called like an image"),
        ("in/*.webp", "no file matches this pattern; name image files"),
        ("list.csv", "call the column of the images 'image'"),
        ("none.csv", "names no image"),
    ],
)
def test_sources_without_an_image_are_refused(folder: Path, tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    shutil.copy(folder / "notes.txt", tmp_path / "texts" / "notes.txt")
    (tmp_path / "list.csv").write_text("weight,height\n1,2\n")
    (tmp_path / "none.csv").write_text("image,weight\n,2\n")
    with pytest.raises(DatasetError, match=r".") as error:
        find_images([str(tmp_path / source)])
    assert message in str(error.value)
    assert "dataset." not in str(error.value)


def test_the_command_writes_everything_and_tells_what_it_could_not_read(
    checkpoint: Path, predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    files = ["--csv", str(out / "s.csv"), "--parquet", str(out / "s.parquet"), "--overlay", str(out / "drawn")]
    status, printed, err = call(monkeypatch, capsys, "predict", str(checkpoint), str(folder), *files, "--json")
    assert status == 2
    assert "2 of 22 images could not be read" in err
    assert f"{folder}/05.png: no image that Pillow can read" in err
    assert f"{folder}/below/cut.png: " in err
    assert "Traceback" not in err
    scores = json.loads(printed)
    uris = [uri for uri in find_images([str(folder)]) if uri in scores]
    assert list(scores) == uris
    assert len(uris) == 20
    expected = predictor.predict([open_image(uri) for uri in uris])
    assert np.allclose([[scores[uri][name] for name in NAMES] for uri in uris], expected, atol=1e-5)
    found = expected >= predictor.decisions.threshold_C.astype(np.float32)

    table = pq.read_table(out / "s.parquet")
    assert json.loads(table.schema.metadata[b"class_names"]) == list(NAMES)
    assert table["image"].to_pylist() == uris
    assert np.allclose(np.array(table["probabilities"].to_pylist()), expected, atol=1e-5)
    with (out / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, listed, own in zip(rows, table["labels"].to_pylist(), found, strict=True):
        assert set(listed) == {NAMES[label] for label in np.flatnonzero(own)}
        assert row["labels"] == ";".join(listed)
    drawn = {path.name for path in (out / "drawn").iterdir()}
    assert len(drawn) == int(np.maximum(found.sum(axis=1), 1).sum())
    assert all(Image.open(out / "drawn" / name).size == (64, 48) for name in drawn)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_thresholds_choose_what_is_shown(
    checkpoint: Path, predictor: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    image = str(photos / "00.png")
    (probability_C,) = predictor.predict([open_image(image)])
    _, printed, _ = call(monkeypatch, capsys, "predict", str(checkpoint), image)
    own = {name for name, p, least in zip(NAMES, probability_C, (0.2, 0.5, 0.9), strict=True) if p >= least}
    assert {word.split()[0] for word in printed.partition(": ")[2].split(", ") if "*" in word} == own
    for words, expected in (
        ((image, "--threshold"), own),
        (("--threshold", image), own),
        (("--threshold", "0", image), set(NAMES)),
        (("--threshold=1", image), set()),
    ):
        status, printed, _ = call(monkeypatch, capsys, "predict", str(checkpoint), *words, "--json")
        assert status == 0
        assert set(json.loads(printed)[image]) == expected
    status, _, err = call(monkeypatch, capsys, "predict", str(checkpoint), image, "--threshold", "7")
    assert status == 2
    assert "no probability between 0 and 1" in err


def test_overlays_are_refused_where_a_method_looks_nowhere(
    photos: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load(write_config(tmp_path / "small.yaml", photos, database), ["model={name: linear_probe}"])
    trained = train(experiment, prepare(experiment))
    words = ("predict", str(trained), str(photos), "--overlay", str(tmp_path / "drawn"))
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 2
    assert "does not tell parts of an image apart; leave it out" in err
    assert not (tmp_path / "drawn").exists()


def test_an_interruption_leaves_whole_files(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(predictor: Predictor, uris: list[str], **more: object) -> Iterator[list[object]]:
        batches = stream_scores(predictor, uris)
        yield list(next(batches))
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.stages.predict.stream_scores", interrupted)
    for number in range(40):
        shutil.copy(photos / "00.png", tmp_path / f"{number:02d}.png")
    files = ["--csv", str(tmp_path / "s.csv"), "--parquet", str(tmp_path / "s.parquet"), "--json"]
    status, printed, err = call(monkeypatch, capsys, "predict", str(checkpoint), f"{tmp_path}/*.png", *files)
    assert status == 130
    assert "interrupted; 32 images are scored" in err
    assert len(json.loads(printed)) == 32
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 32
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 33


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(), st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2)), max_size=5))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[float]]]
) -> None:
    rows = [(uri.encode("utf-8", "ignore").decode(), values) for uri, values in rows]
    images = [ScoredImage(uri, np.array(values, dtype=np.float32)) for uri, values in rows]
    decisions, folder = Decisions.unfitted(["=SUM(A1)", "a;b"]), tmp_path_factory.mktemp("written")
    with csv_output(folder / "s.csv", decisions) as write:
        write(images)
    with parquet_output(folder / "s.parquet", decisions) as write:
        write(images)
    with (folder / "s.json").open("w") as file, json_output(file, decisions, None, False) as write:
        write(images)
    with (folder / "s.txt").open("w") as file, text_output(file, decisions, 1, True) as write:
        write(images)
    with (folder / "s.csv").open(newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    assert header == ["image", "labels", "'=SUM(A1)", "a;b"]
    assert [line[0] for line in lines] == [no_formula(uri) for uri, _ in rows]
    assert not [cell for line in lines for cell in line[:2] if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    for line, (_, values) in zip(lines, rows, strict=True):
        assert [float(cell) for cell in line[2:]] == pytest.approx(values, rel=1e-4)
    assert pq.read_table(folder / "s.parquet")["image"].to_pylist() == [uri for uri, _ in rows]
    assert set(json.loads((folder / "s.json").read_text())) == {uri for uri, _ in rows}


FORMS = {
    "a column": lambda values: {"image": values},
    "rows of one cell": lambda values: {"image": [[value] for value in values]},
    "images": lambda values: values,
    "rows": lambda values: [{"image": value} for value in values],
    "a table": lambda values: pd.DataFrame({"image": values, "more": 0}),
    "a column of a table": lambda values: pd.Series(values),
    "an array": lambda values: np.array(values, dtype=object)[:, None],
}


@pytest.mark.parametrize("name", FORMS)
def test_the_registered_form_takes_images_however_they_are_sent(predictor: Predictor, photos: Path, name: str) -> None:
    contents = [(photos / f"{number:02d}.png").read_bytes() for number in range(2)]
    scores = ImageClassifier(predictor).predict(FORMS[name]([contents[0], base64.b64encode(contents[1]).decode()]))
    assert list(scores.columns) == list(NAMES)
    expected = predictor.predict([open_image(str(photos / f"{number:02d}.png")) for number in range(2)])
    assert np.allclose(scores.to_numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"picture": []}, r'no column "image" among \[\'picture\'\]; name the one that holds the images so'),
        ({"image": ["/etc/passwd"]}, "send its bytes, not its path"),
        ({"image": [None]}, "NoneType: no image; send its bytes"),
        ({"image": [3]}, "int: no image"),
        ([b"GIF89a"], "no image that Pillow can read"),
    ],
)
def test_the_registered_form_says_what_is_no_image(predictor: Predictor, sent: object, message: str) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        ImageClassifier(predictor).predict(sent)  # type: ignore[arg-type]


def test_the_registered_form_refuses_what_files_are_refused_for(predictor: Predictor, photos: Path) -> None:
    small = replace(predictor.encoder.transform, reading=Reading(max_pixels=100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor.encoder, "transform", small)
        with pytest.raises(UnreadableImageError, match="more than encoder.max_pixels"):
            ImageClassifier(predictor).predict([(photos / "00.png").read_bytes()])


@pytest.mark.slow
def test_a_registered_model_gives_evaluations_scores_from_a_fresh_process(
    small_config: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    status, _, err = call(monkeypatch, capsys, "run", str(small_config))
    assert status == 0, err
    folder, elsewhere = tmp_path / "outputs" / "small", tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import sys, mlflow, pandas as pd, numpy as np\n"
        "model = mlflow.pyfunc.load_model('models:/small@champion')\n"
        "images = [open(path, 'rb').read() for path in sys.argv[1:]]\n"
        "np.save('scores.npy', model.predict(pd.DataFrame({'image': images})).to_numpy())\n"
    )
    test = pq.read_table(folder / "predictions.parquet")
    files = [str(photos / image_id) for image_id in test["image_id"].to_pylist()]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", code, *files], cwd=elsewhere, env=os.environ | store, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    logits = np.array(test["scores"].to_pylist(), dtype=np.float32)
    expected = Decisions.read(folder / "checkpoint", NAMES).probabilities(logits)
    assert np.abs(np.load(elsewhere / "scores.npy") - expected).max() < 1e-5

    where = ["--output-dir", str(tmp_path / "outputs"), "--json"]
    status, out, err = call(monkeypatch, capsys, "predict", "models:/small@champion", files[0], *where)
    assert status == 0, err
    assert [json.loads(out)[files[0]][name] for name in NAMES] == pytest.approx(expected[0].tolist(), abs=1e-5)
    status, _, err = call(monkeypatch, capsys, "predict", "models:/small/7", files[0], *where)
    assert status == 2
    assert "`cprfl ui` shows what is registered" in err
