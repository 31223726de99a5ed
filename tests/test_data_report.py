"""`cprfl data`: what it finds in a data set is there, and its text and page can be read by anybody."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len
from typer.testing import CliRunner

from cprfl.data.images import Reading
from cprfl.data.manifest import Manifest
from cprfl.data.synthetic import SyntheticDataset
from cprfl.report.data_set.labels import label_facts
from cprfl.report.data_set.page import write_page
from cprfl.report.data_set.problems import problems
from cprfl.report.data_set.report import DataReport, ImageFacts, Listed, Sized, data_report
from cprfl.report.data_set.text import WIDTH, in_words
from cprfl.report.findings.label_noise import Suspect
from pipelines.cli.data import data
from tests.animals import CLASSES, experiment_at, manifest_of, photo

EVIL = "</script><script>alert('x')</script><img src=http://evil.example/x>"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Twelve good photographs, and one of everything that can be wrong with others."""
    folder = tmp_path_factory.mktemp("animals")
    rows = [
        (f"{number:02d}.png", "train" if number < 8 else "test", ["cat", "dog"][number % 2]) for number in range(12)
    ]
    for name, _, _ in rows:
        photo(int(name[:2])).save(folder / name)

    def add(name: str, split: str, labels: str, image: Image.Image | None = None) -> None:
        rows.append((name, split, labels))
        if image is not None:
            image.save(folder / name)

    shutil.copy(folder / "00.png", folder / "leak.png")
    add("leak.png", "test", "cat")
    add("scaled.jpg", "test", "dog", photo(1).resize((80, 60)))
    add("again.jpg", "train", "cat", photo(2))
    shutil.copy(folder / "03.png", folder / "other.png")
    add("other.png", "train", "dog fish")
    (folder / "cut.png").write_bytes((folder / "04.png").read_bytes()[:2000])
    add("cut.png", "train", "cat")
    add("lost.png", "train", "cat")
    add("dark.png", "train", "cat", Image.new("RGB", (100, 80), (9, 9, 9)))
    add("grey.png", "train", "dog", Image.new("RGB", (100, 80), (120, 120, 120)))
    add("long.png", "train", "cat", photo(50, (400, 40)))
    add("tiny.png", "train", "", photo(51, (20, 24)))
    add("large.png", "test", "snail", photo(52, (640, 480)))
    return folder, manifest_of(folder, rows)


@pytest.fixture(scope="module")
def report(planted: tuple[Path, Manifest]) -> DataReport:
    folder, manifest = planted
    return data_report(experiment_at(folder), replace(manifest, notes=("3 labels were read twice",)))


def ids(groups: Sequence[object]) -> list[list[str]]:
    return [[image.image_id for image in group.images] for group in groups]  # type: ignore[attr-defined]


def test_what_is_planted_is_found(report: DataReport) -> None:
    assert ids(report.leaks) == [["00.png", "leak.png"], ["01.png", "scaled.jpg"]]
    assert [copies.same_bytes for copies in report.leaks] == [True, False]
    assert ids(report.repetitions) == [["02.png", "again.jpg"]]
    assert ids(report.contradictions) == [["03.png", "other.png"]]
    assert report.contradictions[0].contradictory == ("fish",)
    assert [image.image_id for image in report.missing] == ["lost.png"]
    assert report.images is not None and report.images.largest is not None
    assert [image.image_id for image in report.images.bad] == ["cut.png"]
    assert [image.image_id for image in report.images.one_colour] == ["dark.png", "grey.png"]  # which are no copies
    assert [found.image.image_id for found in report.images.elongated] == ["long.png"]
    assert [found.image.image_id for found in report.images.tiny] == ["tiny.png"]
    assert report.images.largest == Sized(
        Listed("large.png", report.images.largest.image.uri, "test", ("snail",)), 640, 480
    )
    assert report.suspects is None
    assert "cprfl preprocess" in str(report.no_suspects)


def test_the_worst_comes_first_and_each_problem_has_its_mend(report: DataReport) -> None:
    found = problems(report)
    assert [problem.code for problem in found] == [
        "leaks", "contradictions", "missing", "bad", "repetitions", "unseen", "untested", "one-colour", "unlabelled",
        "tiny", "elongated",
    ]  # fmt: skip
    assert all(problem.mend and problem.example for problem in found)
    assert "snail, newt" in next(problem.example for problem in found if problem.code == "unseen")
    assert {problem.severity for problem in found[:4]} == {"error"}
    dataset = report.dataset.model_copy(update={"on_bad_image": "skip"})
    skipping = {problem.code: problem.severity for problem in problems(replace(report, dataset=dataset))}
    assert skipping["missing"] == skipping["bad"] == "warning"


def test_without_opening_images_files_are_compared_all_the_same(planted: tuple[Path, Manifest]) -> None:
    folder, manifest = planted
    found = data_report(experiment_at(folder), manifest, open_images=False)
    assert found.images is None
    assert ids(found.leaks) == [["00.png", "leak.png"]]
    assert ids(found.contradictions) == [["03.png", "other.png"]]
    assert "images were not opened" in "\n".join(map(str, in_words(found)))


def test_what_is_unknown_contradicts_nothing(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        photo(0).save(tmp_path / name)
    rows = [("a.png", "train", "cat"), ("b.png", "train", "cat dog")]
    open_question = manifest_of(tmp_path, rows, unknown={"a.png": "dog"})
    assert not data_report(experiment_at(tmp_path), open_question).contradictions
    third = manifest_of(tmp_path, [*rows, ("c.png", "train", "cat")], unknown={"a.png": "dog"})
    assert data_report(experiment_at(tmp_path), third).contradictions[0].contradictory == ("dog",)


def test_where_no_image_is_there_it_is_said_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    photo(0).save(tmp_path / "images" / "a.png")
    found = data_report(experiment_at(tmp_path), manifest_of(tmp_path, [("a.png", "train", "cat")]))
    assert found.elsewhere is not None
    assert str(tmp_path / "images" / "a.png") in found.elsewhere
    assert found.images is not None and found.images.smallest is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_counts_are_those_made_by_hand(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    shown = rng.random((count, 4)) < rng.random(4)
    splits = tuple(rng.choice(["train", "val", "test"], size=count).tolist())
    names = tuple("abcd")
    manifest = Manifest(
        names, tuple(map(str, range(count))), tuple(map(str, range(count))), splits,
        tuple(tuple(np.flatnonzero(row).tolist()) for row in shown),
    )  # fmt: skip
    facts = label_facts(manifest)
    training = shown[np.array(splits) == "train"]
    for found in facts.classes:
        column = names.index(found.name)
        for split in ("train", "val", "test"):
            assert found.images[split] == shown[np.array(splits) == split, column].sum()
        assert found.alone == (training[:, column] & (training.sum(axis=1) == 1)).sum()
    for split, counts in facts.labels_per_image.items():
        lengths = shown[np.array(splits) == split].sum(axis=1)
        assert list(counts) == [(lengths == number).sum() for number in range(len(counts))]
        assert len(facts.without_label[split]) == (lengths == 0).sum()
    order = [names.index(found.name) for found in facts.classes]
    together = training[:, order].T.astype(float) @ training[:, order]
    assert np.allclose(facts.shares_CC, together / np.maximum(training[:, order].sum(axis=0), 1)[:, None])
    for pair in facts.together:
        first, second = (training[:, names.index(name)] for name in (pair.first, pair.second))
        assert pair.images == (first & second).sum() >= 3
        assert pair.share == pytest.approx((first & second).sum() / first.sum())
        assert pair.lift == pytest.approx((first & second).mean() / (first.mean() * second.mean())) and pair.lift > 1
    assert {pair.first for pair in facts.never_alone} == {
        found.name for found in facts.classes if found.images["train"] >= 3 and not found.alone
    }


def test_a_tower_that_moves_has_no_features(planted: tuple[Path, Manifest]) -> None:
    folder, manifest = planted
    experiment = experiment_at(
        folder, train={"backbone": "finetune"}, model={"name": "linear_probe", "standardize": False}
    )
    assert "train.backbone: finetune" in str(data_report(experiment, manifest, open_images=False).no_suspects)


names = st.text(min_size=1, max_size=60) | st.sampled_from([EVIL, "\x1b[31mred\x1b[0m", "長い" * 30, "a b " * 30])


@settings(max_examples=40, deadline=None)
@given(st.lists(names, min_size=1, max_size=90, unique=True), st.integers(0, 2**32 - 1))
def test_text_fits_80_columns_whatever_the_names(class_names: list[str], seed: int) -> None:
    found = hostile_report(class_names, seed)
    lines = in_words(found)
    assert all(cell_len(line.plain) <= WIDTH and line.plain.isprintable() for line in lines)
    assert len(lines) <= 75


def hostile_report(class_names: Sequence[str], seed: int) -> DataReport:
    """A report on random labels of such classes, whose images have such names too."""
    rng = np.random.default_rng(seed)
    count, num_classes = 60, len(class_names)
    labels = tuple(
        tuple(sorted(rng.choice(num_classes, size=rng.integers(0, min(4, num_classes) + 1), replace=False).tolist()))
        for _ in range(count)
    )
    image_ids = tuple(f"{class_names[number % num_classes]}/{number}.jpg" for number in range(count))
    uris = tuple(f"/nowhere/{number}.jpg" for number in range(count))
    manifest = Manifest(tuple(class_names), image_ids, uris, ("train",) * 40 + ("test",) * 20, labels)
    image = Listed(image_ids[0], uris[0], "train", (class_names[0],))
    suspects = tuple(Suspect(name, uris[0], class_names[0], True, 0.001, 0.7, 3.0) for name in image_ids[:20])
    facts = ImageFacts((), Sized(image, 4, 5), Sized(image, 400, 5), (), (Sized(image, 4, 5),), (image,))
    notes = tuple(f"note of {name}" for name in class_names)
    return DataReport(
        "hostile", SyntheticDataset(), count, manifest.groups, label_facts(manifest), notes, (), None, facts, (),
        suspects, None,
    )  # fmt: skip


def test_the_text_of_eighty_classes_is_a_page_long() -> None:
    lines = [line.plain for line in in_words(hostile_report([f"class {number}" for number in range(80)], 0))]
    assert len(lines) <= 60
    assert any(re.search(r"and \d+ classes between", line) for line in lines)
    assert sum("█" in line or "▏" in line for line in lines) >= 8


class Elements(HTMLParser):
    """What a page is made of, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.policy = ""
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name in found if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_holds_all_it_shows_and_loads_nothing(report: DataReport, tmp_path: Path) -> None:
    write_page(report, tmp_path / "page.html", Reading())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Elements(text)
    assert all(name in page.words for name in CLASSES)
    assert all(problem.title in page.words for problem in problems(report))
    assert "3 labels were read twice" in page.words
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.loaded)
    assert page.tags.count("img") == 8  # of two leaks, a contradiction and a repetition
    assert not re.search(r"@import|url\(", text.partition("</style>")[0])
    assert page.policy.startswith("default-src 'none'; img-src data:;")
    assert len(text) < 3_000_000


def test_names_are_data_on_the_page(tmp_path: Path) -> None:
    class_names = [EVIL, *(f"class {number}" for number in range(79))]
    write_page(hostile_report(class_names, 0), tmp_path / "page.html", Reading())
    page = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 5  # four plots, and what draws them
    assert "img" not in page.tags
    assert EVIL in page.words


def test_the_command_prints_the_report_and_writes_the_page(photos: Path, tmp_path: Path) -> None:
    experiment_at(tmp_path, data_root=str(photos), dataset={
        "name": "csv", "splits": {"train": "train.csv", "test": "test.csv"}, "groups": {"head": 10, "tail": 8},
    })  # fmt: skip
    app = typer.Typer()
    app.command()(data)
    done = CliRunner().invoke(
        app, [str(tmp_path / "e.yaml"), "--html", str(tmp_path / "page.html"), "--set", "name=own"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("own: 24 images, 3 classes")
    assert "\x1b" not in done.stdout
    assert (tmp_path / "page.html").exists()
    done = CliRunner().invoke(app, [str(tmp_path / "e.yaml"), "--no-images"])
    assert "images were not opened" in done.stdout
    assert not (tmp_path / "outputs").exists()  # nothing is encoded, and nothing is written
