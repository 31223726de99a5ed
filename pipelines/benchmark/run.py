"""`cprfl benchmark`: every method trained with every seed, tested once, in one table and one MLflow experiment."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprfl.data.files import write_aside, write_json
from cprfl.data.manifest import TEST, Manifest
from cprfl.errors import UserError
from cprfl.evaluation.metrics import read_predictions
from cprfl.experiment import Experiment
from cprfl.inference.scoring import PREDICTIONS
from cprfl.out_of_fold import FOLDS
from cprfl.preparation import EncoderOnce
from cprfl.reading import read_data
from pipelines.benchmark.cells import Cell, run_cell
from pipelines.benchmark.plan import REFERENCE, Entry, plan
from pipelines.benchmark.table import Row, in_html, in_markdown, lines
from pipelines.cluster.tasks import has_gpus, run_tasks
from pipelines.lock import one_at_a_time
from pipelines.stages.preprocess import preprocess
from pipelines.sweeps.config import Distribution, SweepConfig
from pipelines.sweeps.tune import interrupted, mark_winner_trained, search
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import Store, open_store

_LR = {"frozen": (1e-4, 1e-2), "adapter": (1e-4, 1e-2), "finetune": (1e-5, 1e-3)}  # by what moves


@dataclass(frozen=True)
class Benchmark:
    """What came of it.

    Attributes:
        table: lines of the table, the best method first.
        failures: methods and cells without a result, and why.
        folder: has ``benchmark.md`` and ``.html``.
    """

    table: list[list[str]]
    failures: list[str]
    folder: Path


@one_at_a_time
def benchmark(
    experiment: Experiment, methods: Sequence[str], seeds: int, trials: int | None, command: str
) -> Benchmark:
    """Run a benchmark, or go on with it: cells that are done are not run again.

    Args:
        experiment: its data, encoder and training are the methods' too.
        methods: names (`plan`).
        seeds: trainings of each method whose result depends on the seed.
        trials: settings tried for each method that gradients train, on folds of the training images; none unless given.
            Methods that choose on folds by themselves are left to that.
        command: that asked for it, for the page.

    Raises:
        ConfigError: for unknown methods.
    """
    store, manifest = open_store(experiment.output_dir), read_data(experiment)
    rows, jobs = _prepared(experiment, plan(experiment, methods), manifest)
    jobs = [(row, _searched(store, entry, trials, manifest) if trials else entry) for row, entry in jobs]
    cells = [
        (row, number, cell_of(experiment, entry, number))
        for row, entry in jobs
        for number in range(seeds if entry.seeds_matter else 1)
    ]
    gpu = experiment.resources.gpu != "never" and has_gpus()
    settings = [cell.model_dump(mode="json") for _, _, cell in cells]
    (experiment.folder / "benchmark").mkdir(parents=True, exist_ok=True)
    for done, (number, result) in enumerate(run_tasks(run_cell, settings, experiment.folder, gpu), 1):
        row, seed, cell = cells[number]
        outcome = _take(store, experiment, row, seed, cell, result)
        print(f"benchmark {done}/{len(cells)}: {row.name}, seed {seed}: {outcome}", file=sys.stderr, flush=True)
    return _write(store, experiment, rows, seeds, trials, command)


def _prepared(
    experiment: Experiment, entries: list[Entry], manifest: Manifest
) -> tuple[list[Row], list[tuple[Row, Entry]]]:
    """A row for each entry, and those that can be run, with the features that they share cached."""
    rows, jobs, encoder = [], [], None
    done: dict[str, EncoderOnce] = {}
    for entry in entries:
        row = Row(entry.name)
        rows.append(row)
        if entry.experiment is None:
            row.failures.append(entry.reason)
            continue
        key = entry.experiment.encoder.model_dump_json()
        try:
            if entry.experiment.first is None and not entry.experiment.train.moves_tower and key not in done:
                named = entry.experiment.model_copy(update={"name": experiment.name})
                done[key] = preprocess(named, manifest=manifest, needs=[TEST], encoder=encoder).encoder
                encoder = encoder or done[key]
        except UserError as error:
            row.failures.append(str(error).splitlines()[0])
            continue
        jobs.append((row, entry))
    return rows, jobs


def _searched(store: Store, entry: Entry, trials: int, manifest: Manifest) -> Entry:
    """The entry with the best of so many settings, on folds of the training images."""
    experiment = entry.experiment
    assert experiment is not None
    if not experiment.model.by_gradients or experiment.model.folds:
        return entry
    epochs = experiment.train.epochs
    space = {
        "train.lr": Distribution(log=_LR[experiment.train.backbone]),
        "train.weight_decay": Distribution(log=(1e-3, 0.3)),
        "train.epochs": Distribution(choice=sorted({max(1, epochs // 2), epochs, 2 * epochs})),
    }
    # the tower of an experiment before has seen all folds; a validation split is held out of both
    folds = None if experiment.first is not None else FOLDS
    sweep = SweepConfig(space=space, trials=trials, folds=folds, scheduler="none")
    searched = experiment.model_copy(update={"name": f"{experiment.name}-search-{entry.name}"})
    resume = interrupted(searched, sweep)
    settings, value = search(store, searched, sweep, manifest, resume=resume)
    mark_winner_trained(searched)
    print(f"benchmark: {entry.name}: {sweep.metric} {value:.2f} with {settings}", file=sys.stderr, flush=True)
    return entry.changed(settings)


def cell_of(experiment: Experiment, entry: Entry, seed: int) -> Experiment:
    """The experiment of one cell: an entry with one seed, trained in a process of its own."""
    assert entry.experiment is not None
    changes = {"name": f"{experiment.name}-benchmark-{entry.name}-{seed}", "seed": experiment.seed + seed}
    cell = entry.experiment.changed({**changes, "resources.num_workers": 0, "encoder.num_workers": 0})
    if cell.first is None:
        return cell
    return cell.model_copy(update={"first": {**cell.first, "name": f"{cell.name}-first"}})  # a chain of its own


def _take(
    store: Store, experiment: Experiment, row: Row, seed: int, cell: Experiment, result: dict[str, Any] | Exception
) -> str:
    """Put a cell's result into its row and into MLflow, and say it in a few words."""
    logged = cell.model_copy(update={"name": f"{experiment.name}-benchmark"})
    tags, name = {"method": row.name, "seed": str(seed)}, f"{row.name} · seed {seed}"
    if isinstance(result, Exception):
        reason = f"{type(result).__name__}: {str(result).strip().splitlines()[0] if str(result).strip() else ''}"
        row.failures.append(f"seed {seed}: {reason}")
        with open_run(store, logged, tags={**tags, "error": reason}, own_metrics=False, name=name):
            return f"failed, {reason}"
    found = Cell(**result)
    row.cells.append(found)
    test = read_predictions(cell.folder / PREDICTIONS, _test_ids(cell))
    row.logits.append(test)
    with open_run(store, logged, tags=tags, own_metrics=False, name=name) as run:
        measured = {"seconds": found.seconds, "trained_parameters": float(found.trained_parameters),
                    "memory_mb": found.memory_mb}  # fmt: skip
        test_metrics = {f"test/{name}": value for name, value in found.metrics.items()}
        run.log_results({**test_metrics, **found.found, **measured})
    return f"test/mAP {found.metrics['mAP']:.1f}, {found.seconds:.0f} s"


def _test_ids(cell: Experiment) -> tuple[str, ...]:
    return Manifest.read(cell.folder / "manifest.parquet").split(TEST).image_ids


def _write(
    store: Store,
    experiment: Experiment,
    rows: list[Row],
    seeds: int,
    trials: int | None,
    command: str,
) -> Benchmark:
    folder, title = experiment.folder / "benchmark", f"{experiment.name}: methods on the same images"
    failures = [f"{row.name}: {reason}" for row in rows for reason in row.failures]
    table: list[list[str]] = []
    about = [f"$ {command}"]
    if any(row.cells for row in rows):
        split = Manifest.read(experiment.folder / "manifest.parquet")
        test = split.split(TEST)
        table = lines(rows, REFERENCE, test.targets())
        about.append(_about(experiment, split, seeds, trials))
    for name, render in (("benchmark.md", in_markdown), ("benchmark.html", in_html)):
        with write_aside(folder / name) as aside:
            aside.write_text(render(title, about, table, failures), encoding="utf-8")
    results = {row.name: {"metrics": [cell.metrics for cell in row.cells], "failures": row.failures} for row in rows}
    write_json(folder / "benchmark.json", results)
    logged = experiment.model_copy(update={"name": f"{experiment.name}-benchmark"})
    with open_run(store, logged, tags={"benchmark": "table"}, own_metrics=False, name="table") as run:
        run.log_results({}, folder)
    return Benchmark(table, failures, folder)


def _about(experiment: Experiment, manifest: Manifest, seeds: int, trials: int | None) -> str:
    training, test = len(manifest.split("train")), len(manifest.split(TEST))
    means = f"mean ± standard deviation over {seeds} seeds (what no seed changes ran once)" if seeds > 1 else "one seed"
    chosen = (
        f"{trials} settings per method that gradients train were tried on folds of the training images"
        if trials
        else "settings as configured, nothing searched"
    )
    protocol = "" if experiment.protocol == "honest" else " The epoch was chosen on the test images."
    return (
        f"{training} training and {test} test images, {len(manifest.class_names)} classes; test mAP in percent, "
        f"{means}; {chosen}. Differences (against LR, "
        "the logistic regression) are of the mean, with the 95 % interval of a paired bootstrap over the test images. "
        "Seconds and memory are of one training and test in a process of its own; features were cached."
        f"{protocol}"
    )


def command_line(config: Path, methods: str, seeds: int, trials: int | None, overrides: Sequence[str]) -> str:
    """The command as it would be typed."""
    words = ["cprfl", "benchmark", str(config), "--methods", methods, "--seeds", str(seeds)]
    words += ["--trials", str(trials)] if trials else []
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)
