"""MLflow's pages as a person meets them: the printed link, the runs, one run, two compared, the report in a run."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from playwright.sync_api import Page, expect

from cprfl.experiment import Experiment, load
from pipelines.stages.run import run as run_stage
from pipelines.tracking.runs import experiment_url, run_url
from pipelines.tracking.store import open_store
from tests.browser import browser
from tests.helpers import command, free_ports, runs, wait_for, write_config

_FEW = {"mAP", "mAP_head", "mAP_medium", "OF1", "CF1", "OF1_decided", "CF1_decided", "ECE"}
"""Test metrics of a run itself: each is a chart, and MLflow shows them before ``train/loss``."""


@dataclass(frozen=True)
class Served:
    """An experiment with a variant, both run, and MLflow's server on its store."""

    experiment: Experiment
    address: str

    def here(self, url: str) -> str:
        """A printed link, on this server's port."""
        return url.replace("http://127.0.0.1:5000", self.address)

    @property
    def experiment_url(self) -> str:
        """What `cprfl run` prints."""
        return self.here(experiment_url(open_store(self.experiment.output_dir), self.experiment.name))

    def run_url(self, name: str, tab: str = "") -> str:
        """The page of a run by its name, or a tab of it."""
        (found,) = (run for run in runs(self.experiment) if run.info.run_name == name)
        before, _, query = self.here(run_url(open_store(self.experiment.output_dir), found.info.run_id)).rpartition("?")
        return f"{before}{tab}?{query}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, photos: Path, database: Path, features: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pages")
    config = write_config(folder / "small.yaml", photos, database, feature_dir=str(features))
    settings = ["train.epochs=3", "decisions.folds=0", "variants.probe.model.name=linear_probe"]
    experiment = load(config, settings)
    run_stage(experiment)
    (port,) = free_ports(1)
    words = command("ui", "--output-dir", experiment.output_dir, "--port", str(port))
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return bool(urllib.request.urlopen(f"{address}/health", timeout=2).status == 200)
        except OSError:
            return False

    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(answers)
            yield Served(experiment, address)
        finally:
            process.terminate()


def shown(page: Page, text: str | re.Pattern[str]) -> None:
    """Wait until a text is seen: MLflow's pages ask for their contents one after the other."""
    expect(page.get_by_text(text).first).to_be_visible(timeout=60_000)


def test_the_printed_link_shows_the_runs_by_their_names(served: Served, tmp_path: Path) -> None:
    with browser(1600, 1000) as seen:
        seen.page.goto(served.experiment_url)
        for name in ("small", "probe"):
            expect(seen.page.get_by_role("link", name=name, exact=True).first).to_be_visible(timeout=60_000)
        expect(seen.page.get_by_role("heading", name="Runs")).to_be_visible()  # and not what language models did
        assert not seen.page.get_by_role("link", name="small · classes").count()  # folded away below their run
        seen.screenshot(tmp_path / "runs.png")


def test_a_run_says_what_it_is_and_of_which_data(served: Served, tmp_path: Path) -> None:
    with browser(1600, 1400) as seen:
        seen.page.goto(served.run_url("small"))
        shown(seen.page, re.compile(r"test mAP \d+\.\d %"))
        shown(seen.page, re.compile("csv photos"))
        seen.screenshot(tmp_path / "run.png")


def test_the_first_charts_of_a_run_are_those_that_decide(served: Served, tmp_path: Path) -> None:
    with browser(1600, 1400) as seen:
        seen.page.goto(served.run_url("small", "/model-metrics"))
        shown(seen.page, re.compile(r"^mAP$"))
        (run,) = (run for run in runs(served.experiment) if run.info.run_name == "small")
        tested = {name for name in run.data.metrics if name.startswith("test/")}
        assert tested == {f"test/{name}" for name in _FEW}
        seen.screenshot(tmp_path / "metrics.png")


def test_the_metrics_of_classes_are_found_by_searching(served: Served) -> None:
    number = runs(served.experiment)[0].info.experiment_id
    found = mlflow.MlflowClient().search_runs([number], 'metrics."test/AP/red" >= 0')
    assert {run.info.run_name for run in found} == {"small · classes", "probe · classes"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {
        run.info.run_id for run in runs(served.experiment)
    }


def test_two_runs_are_compared_by_their_mean_average_precision(served: Served, tmp_path: Path) -> None:
    with browser(1600, 1400) as seen:
        ids = [run.info.run_id for run in runs(served.experiment)]
        number = runs(served.experiment)[0].info.experiment_id
        listed = "[" + ",".join(f'"{one}"' for one in ids) + "]"
        seen.page.goto(f'{served.address}/#/compare-runs?runs={listed}&experiments=["{number}"]')
        seen.page.get_by_text("Metrics", exact=True).last.scroll_into_view_if_needed(timeout=60_000)
        first = seen.page.get_by_role("link", name=re.compile("^(system|test)[^ ]*$")).first
        first.hover(timeout=60_000)
        name = seen.page.get_by_role("link", name="test/mAP", exact=True)
        for _ in range(20):  # only rows near those in sight are there at all
            if name.count():
                break
            seen.page.mouse.wheel(0, 150)
            seen.page.wait_for_timeout(200)
        name.scroll_into_view_if_needed(timeout=60_000)
        for run in runs(served.experiment):
            shown(seen.page, re.compile(rf"^{round(run.data.metrics['test/mAP'], 2):g}$"))
        seen.screenshot(tmp_path / "compare.png")


def test_the_report_opens_in_a_run(served: Served, tmp_path: Path) -> None:
    with browser(1600, 1400) as seen:
        seen.page.goto(served.run_url("small", "/artifacts/report.html"))
        report = seen.page.frame_locator("iframe")
        expect(report.get_by_role("heading", name="small").first).to_be_visible(timeout=60_000)
        expect(report.locator("svg").first).to_be_visible(timeout=60_000)  # scripts run: a plot is drawn
        seen.screenshot(tmp_path / "report.png")
