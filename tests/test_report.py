"""The report of a trained model: what it says is so, it shows it in a browser, and nobody's names do harm."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import expect

from cprfl.data.manifest import Manifest
from cprfl.errors import CheckpointError
from cprfl.evaluation.decisions import Decisions
from cprfl.evaluation.metrics import Evaluation, average_precision, write_predictions
from cprfl.experiment import load
from cprfl.inference.predictor import load_method
from cprfl.inference.scoring import evaluate_checkpoint
from cprfl.preparation import Prepared, prepare
from cprfl.recipe import train
from cprfl.report.baselines import write_baselines
from cprfl.report.model import heat
from cprfl.report.model.class_facts import precision_recall
from cprfl.report.model.images_of_class import how_many, images_of_class
from cprfl.report.model.long_tail_picture import write_picture
from cprfl.report.model.page import write_page
from cprfl.report.model.report import ModelReport, model_report
from cprfl.report.model.summary import what_came_of_it, what_was_run
from cprfl.report.results import BASELINES, Results
from pipelines.stages.report import report_of, write_report
from tests.browser import browser
from tests.helpers import write_config

EVIL = (
    "</script><script>alert('x')</script><img src=http://evil.example/x>",
    '"><svg onload=alert(1)>\u202e مرحبا',
    "x" * 200,
)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, features: Path, database: Path
) -> tuple[Path, Prepared]:
    """A configuration of the photos, trained, tested and with its baselines beside it."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "small.yaml", photos, database, feature_dir=str(features))
    experiment = load(config)
    prepared = prepare(experiment)
    evaluate_checkpoint(experiment, prepared, train(experiment, prepared))
    write_baselines(experiment, prepared)
    return config, prepared


@pytest.fixture(scope="module")
def report(trained: tuple[Path, Prepared]) -> ModelReport:
    return model_report(Results.read(load(trained[0]).folder))


class Elements(HTMLParser):
    """Tags of a page, what it would load, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.loaded += [value for name in ("src", "href") if (value := values.get(name)) and not value.startswith("#")]

    def handle_data(self, data: str) -> None:
        self.words += data


def hostile(report: ModelReport) -> ModelReport:
    """The same report of classes with names that want to be more than names."""
    before = report.results.manifest
    manifest = replace(before, class_names=EVIL)
    renamed = dict(zip(before.class_names, EVIL, strict=True))
    metrics = report.results.evaluation.metrics | {
        f"AP/{new}": report.results.evaluation.metrics[f"AP/{old}"]
        for old, new in renamed.items()
        if f"AP/{old}" in report.results.evaluation.metrics
    }
    results = replace(report.results, manifest=manifest, evaluation=Evaluation(metrics, []))
    results.__dict__["logits"] = report.results.logits  # as if the files had these names too
    results.__dict__["baselines"] = {}
    results.__dict__["decisions"] = Decisions.unfitted(EVIL)
    classes = [
        replace(facts, name=renamed[facts.name], confusion=replace(facts.confusion, comes_with=(), shown_instead=(),
                                                                   found_instead=()))
        for facts in report.classes
    ]  # fmt: skip
    return replace(report, results=results, classes=classes)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_the_area_below_the_curve_is_the_average_precision(images: list[tuple[int, bool]]) -> None:
    scores, shown = np.array([score for score, _ in images], dtype=float), np.array([own for _, own in images])
    recall, precision = precision_recall(scores, shown)
    wanted = average_precision(scores[:, None], shown[:, None].astype(float))[0]
    area = (np.diff(recall, prepend=0) * precision).sum()
    assert np.isnan(wanted) if not shown.any() else area == pytest.approx(wanted)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, float("nan")])), min_size=1, max_size=30),
    st.floats(0, 1),
    st.integers(1, 6),
)
def test_images_of_a_class_are_of_their_kind(images: list[tuple[float, float]], threshold: float, count: int) -> None:
    probability, targets = np.array(images, dtype=np.float32).T
    chosen = images_of_class(targets, probability, threshold, count)
    above = probability >= np.float32(threshold)
    assert all(targets[row] == 1 and not above[row] for row in chosen.missed)
    assert all(targets[row] == 0 and above[row] for row in chosen.false)
    assert all(targets[row] == 1 and above[row] for row in chosen.found)
    assert not np.isnan(targets[chosen.rows]).any()
    assert len(chosen.rows) == len(set(chosen.rows)) <= 4 * count
    assert sorted(probability[chosen.missed]) == list(probability[chosen.missed])
    if chosen.missed and len(chosen.missed) < count:
        assert len(chosen.missed) == (~above & (targets == 1)).sum()


def test_the_number_of_pictures_is_bounded_whatever_the_number_of_classes() -> None:
    assert how_many(3) == how_many(24) == 6
    assert [4 * how_many(count) * count for count in (80, 200, 1000)] == [1280, 800, 4000]


def test_the_overlay_is_the_strongest_where_the_weight_is() -> None:
    weights = np.array([[0.7, 0.1], [0.1, 0.1]])
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat.picture(weights)))).convert("RGBA"))[..., 3]
    assert alpha[0, 0] > 200 and alpha[0, 1] == alpha[1, 0] == alpha[1, 1] < 40
    even = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat.picture(np.full((2, 2), 0.25))))).convert("RGBA"))
    assert even[..., 3].max() < 100  # weights that say nothing look so


def test_the_page_says_what_was_run_and_what_came_of_it(report: ModelReport, tmp_path: Path) -> None:
    write_page(report, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Elements(text)
    assert what_was_run(report) in page.words and what_came_of_it(report) in page.words
    assert "logistic regression" in what_came_of_it(report)
    assert {f"class-{label}" for label in range(3)} <= set(page.ids)
    assert all(check.title in page.words for check in report.checks)
    assert not page.loaded
    assert "default-src &#39;none&#39;" in text
    kept = re.search(r'id="pictures">(.*?)</script>', text)
    assert kept is not None
    pictures = json.loads(kept.group(1))
    assert len(set(pictures)) == len(pictures) <= 24  # each image is in the page once, whatever shows it


def test_names_are_data_on_the_page(report: ModelReport, tmp_path: Path) -> None:
    write_page(report, tmp_path / "plain.html")
    write_page(hostile(report), tmp_path / "page.html")
    plain, page = (Elements((tmp_path / name).read_text(encoding="utf-8")) for name in ("plain.html", "page.html"))
    assert all(name in page.words for name in EVIL)
    assert page.tags.count("script") == plain.tags.count("script")
    assert "svg" not in page.tags and not page.loaded


def test_the_page_in_a_browser(report: ModelReport, tmp_path: Path) -> None:
    """Plots are drawn, that of the long tail leads to a class, an overlay is seen, lists are sorted and searched."""
    write_page(hostile(report), tmp_path / "page.html")
    with browser(dark=True) as seen:
        page, address = seen.page, (tmp_path / "page.html").as_uri()
        page.goto(address)
        page.wait_for_selector("[data-chart='chart-long-tail'] svg")
        assert page.locator("details.class[open]").count() == 0
        page.locator("[data-chart='chart-long-tail'] .mark-symbol path").first.click()
        page.wait_for_selector("details.class[open] [data-numbers='scores'] svg")
        section = page.locator("details.class[open]")
        assert section.locator(".chart svg").count() == 3
        assert section.locator("img[data-picture]").first.evaluate("image => image.naturalWidth") > 0
        heat_of_it = section.locator("img.heat").first
        assert heat_of_it.evaluate("image => getComputedStyle(image).opacity") == "0"
        section.locator(".looks").check()
        expect(heat_of_it).to_have_css("opacity", "1")
        assert heat_of_it.evaluate("image => image.naturalWidth") > 0
        page.locator("button[data-sort='training']").click()
        counts = page.locator("details.class").evaluate_all("all => all.map(one => Number(one.dataset.training))")
        assert counts == sorted(counts)
        page.locator("#wanted").fill("XXXX")
        assert page.locator("details.class:visible").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert seen.errors == []
    assert seen.requests == [address]


def test_the_page_fits_a_phone(report: ModelReport, tmp_path: Path) -> None:
    write_page(hostile(report), tmp_path / "page.html")
    with browser(width=390, height=844) as seen:
        seen.page.goto(f"{(tmp_path / 'page.html').as_uri()}#class-2")
        seen.page.wait_for_selector("#class-2[open] [data-numbers='scores'] svg")
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_method_without_attention_says_so_once(
    report: ModelReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, _ = load_method(report.results.checkpoint)
    monkeypatch.setattr(type(method), "attention", lambda *_: None)
    write_page(report, tmp_path / "page.html")
    assert (
        Elements((tmp_path / "page.html").read_text(encoding="utf-8")).words.count("Where it looks is not shown") == 1
    )


def test_the_picture_of_the_long_tail_is_one_whatever_the_names(report: ModelReport, tmp_path: Path) -> None:
    write_picture(hostile(report), tmp_path / "tail.png")
    assert Image.open(tmp_path / "tail.png").size == (960, 480)


def test_results_are_found_by_folder_configuration_and_age(trained: tuple[Path, Prepared], tmp_path: Path) -> None:
    config, _ = trained
    folder = load(config).folder
    for found in (report_of(str(folder)), report_of(str(config)), report_of(None, folder.parent)):
        assert found == folder / "report.html"
    with pytest.raises(CheckpointError, match="no evaluated model here"):
        report_of(None, tmp_path)


def test_the_champions_scores_stay_and_are_shown(trained: tuple[Path, Prepared]) -> None:
    config, prepared = trained
    experiment = load(config)
    test: Manifest = prepared.manifest.split("test")
    path = experiment.folder / BASELINES / "champion.parquet"
    scores = np.random.default_rng(0).normal(size=(len(test), 3))
    write_predictions(path, test.image_ids, scores, test.class_names)
    page = write_report(experiment, prepared)
    assert "over champion" in page.read_text(encoding="utf-8")
    path.unlink()
    shutil.rmtree(experiment.cache_dir / BASELINES)
