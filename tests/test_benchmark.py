"""`cprfl benchmark`: which experiments it consists of, what it writes, and that it goes on after failures."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml

from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load
from pipelines.benchmark.cells import RESULT, Cell
from pipelines.benchmark.plan import CONFIGS, plan
from pipelines.benchmark.run import cell_of
from pipelines.benchmark.table import Row, difference, in_html, in_markdown, lines
from pipelines.tracking.store import open_store
from tests.helpers import call

VARIANTS = {"broken": {"train": {"lr": 1e30, "clip_norm": None}}, "linear-probe": {"model": {"name": "linear_probe"}}}


@pytest.fixture
def config(small_config: Path) -> Path:
    """The small experiment with a variant that cannot be trained."""
    values = yaml.safe_load(small_config.read_text()) | {"variants": VARIANTS}
    small_config.write_text(yaml.safe_dump(values))
    return small_config


def test_names_are_variants_or_methods_with_what_suits_them(config: Path) -> None:
    experiment = load(config)
    entries = {entry.name: entry for entry in plan(experiment, ["linear_probe", "csra", "hp_dval"])}
    assert list(entries) == ["linear_probe", "csra", "hp_dval", "logistic_regression"]
    probe, csra = entries["linear_probe"].experiment, entries["csra"].experiment
    assert probe is not None
    assert probe.name == "small-linear-probe"
    assert csra is not None
    assert csra.train.lr is None  # what suits CPRFL is not taken for what suits it
    assert csra.train.epochs == 4
    assert entries["hp_dval"].experiment is None
    assert "learns through a text tower; set text_encoder.name: open_clip" in entries["hp_dval"].reason


def test_all_are_the_experiment_its_variants_and_every_other_method(config: Path) -> None:
    entries = plan(load(config), ["all"])
    names = [entry.name for entry in entries]
    assert names[:3] == ["cprfl", "broken", "linear_probe"]
    assert len(names) == len(set(names))
    assert set(CONFIGS) - {"ensemble"} <= set(names)
    assert [entry.name for entry in plan(load(config), ["variants"])] == [*names[:3], "logistic_regression"]


def test_an_unknown_name_says_which_are_known(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"--methods liner_probe: .* did you mean 'linear_probe'\? \(choices: auto, "):
        plan(load(config), ["liner_probe"])


def test_every_method_can_be_planned_on_the_embedded_set() -> None:
    for entry in plan(load("configs/methods/demo.yaml"), ["all"]):
        assert entry.experiment is not None, entry


def test_a_chain_is_planned_whole() -> None:
    (entry, _) = plan(load("configs/demo.yaml"), ["hp-dval"])
    assert isinstance(entry.experiment, Experiment)
    before = entry.experiment.first_experiment
    assert before is not None
    assert (before.train.backbone, before.train.distill, before.train.lr) == ("finetune", 1.0, None)
    assert entry.experiment.loss.name == before.loss.name == "db_star"
    assert before.model.needs_moving_tower
    cells = [cell_of(load("configs/demo.yaml"), entry, seed) for seed in (0, 1)]
    assert [cell.seed for cell in cells] == [0, 1]
    chain = [cell.first_experiment for cell in cells]
    assert [found and found.name for found in chain] == [f"demo-benchmark-hp_dval-{seed}-first" for seed in (0, 1)]
    assert [found and found.seed for found in chain] == [0, 1]


def cell(value: float, **found: float) -> Cell:
    metrics = {"mAP": value, "mAP_head": value + 1, "mAP_tail": value - 1}
    return Cell(metrics, dict(found), 2.0, 1234, 100.0, 0.0, "key")


def test_the_table_has_means_deviations_and_paired_intervals() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 3)) < 0.3).astype(np.float32)
    good, poor = (targets * scale + rng.normal(size=targets.shape) for scale in (3.0, 0.5))
    better = Row("better", [cell(60.0), cell(62.0)], [good, good])
    reference = Row("logistic_regression", [cell(50.0)], [poor])
    chosen = cell(55.0, **{"folds/share/cprfl": 0.75, "folds/share/zero_shot": 0.0, "folds/epochs": 12.0})
    same, failed = Row("same", [chosen], [poor]), Row("failed", failures=["seed 0: no"])
    table = lines([reference, same, failed, better], "logistic_regression", targets)
    assert [row[0] for row in table] == ["better", "same", "logistic_regression"]
    assert table[0][1:5] == ["61.0 ± 1.4", "62.0 ± 1.4", "-", "60.0 ± 1.4"]
    assert table[0][5].startswith("+11.0 [+")
    assert table[1][5] == "+5.0 [+0.0, +0.0]"
    assert table[1][-1] == "0.75 cprfl, 12 epochs"
    assert table[2][5] == "-"
    assert difference(reference, better, targets).startswith("-11.0 [-")
    page = in_html("<title>", ["a < b"], table, ["failed: <script>"])
    assert "<script>" not in page
    assert "&lt;title&gt;" in page
    assert "| better | 61.0 ± 1.4 |" in in_markdown("t", ["about"], table, [])


def test_it_runs_all_records_failures_and_goes_on(
    config: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("benchmark", str(config), "--methods", "linear-probe,broken,hp_dval,gaussian_discriminant", "--seeds", "2")
    status, out, _ = call(monkeypatch, capsys, *words)
    assert status == 0
    experiment = load(config)
    results = json.loads((experiment.folder / "benchmark" / "benchmark.json").read_text())
    assert {name: len(found["metrics"]) for name, found in results.items()} == {
        "linear_probe": 2, "broken": 0, "hp_dval": 0, "gaussian_discriminant": 1, "logistic_regression": 1,
    }  # fmt: skip
    assert "NonFiniteError" in results["broken"]["failures"][0]
    assert "no result: hp_dval: model.name=hp_dval learns through a text tower" in out
    text = (experiment.folder / "benchmark" / "benchmark.md").read_text()
    assert "16 training and 8 test images, 3 classes" in text
    assert "cprfl benchmark" in text
    everything = mlflow.MlflowClient().search_runs([open_store(experiment.output_dir).experiment_id("small-benchmark")])
    found = [run for run in everything if run.data.tags.get("cprfl.kind") != "classes"]
    assert len(found) == 2 + 2 + 1 + 1 + 1  # the table too
    assert {run.data.tags.get("seed") for run in found} == {"0", "1", None}
    cells = sorted(Path(experiment.output_dir).glob(f"*/{RESULT}"))
    assert len(cells) == 4
    written = [path.stat().st_mtime_ns for path in cells]
    assert call(monkeypatch, capsys, *words)[0] == 0
    assert [path.stat().st_mtime_ns for path in cells] == written  # nothing was trained again


@pytest.mark.slow
def test_each_method_gets_as_many_trials_on_folds(
    config: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    override = ("--set", "train.epochs=2")
    words = ("benchmark", str(config), "--methods", "linear_probe", "--seeds", "1", "--trials", "2", *override)
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 0
    assert "benchmark: linear_probe: val/mAP" in err
    assert "2 settings per method" in (load(config).folder / "benchmark" / "benchmark.md").read_text()
