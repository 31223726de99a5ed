"""The `cprfl` command: parses, calls a stage, prints. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli import (
    check,
    cluster,
    compare,
    data,
    export,
    features,
    few_shot,
    findings,
    init,
    next,
    predict,
    report,
    serve,
)
from pipelines.cli.ending import check_places, flush, mistakes_told
from pipelines.cli.examples import add_examples
from pipelines.cli.interrupting import interrupts_heard, say_where, was_interrupted
from pipelines.cli.options import ConfigArgument, SetOption, load
from pipelines.cli.results import print_results, print_versions
from pipelines.cli.standing import print_standing

if TYPE_CHECKING:
    from cprfl.experiment import Experiment

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,  # --version alone
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and mistakes only, no progress.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="What is done when, and libraries' warnings.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Versions of cprfl and what it stands on.")] = False,
) -> None:
    """Train classifiers of images that carry several labels, most of them rare."""
    from cprfl.environment import check_memory
    from cprfl.progress import NORMAL, QUIET, VERBOSE, set_verbosity

    set_verbosity(QUIET if quiet else VERBOSE if verbose else NORMAL)
    if not verbose:
        warnings.filterwarnings("ignore", category=FutureWarning)
    if version:
        print_versions()
        raise typer.Exit
    check_memory()


app.add_typer(features.app, name="features")
app.add_typer(cluster.app, name="jobs")


app.command()(init.init)
app.command()(data.data)
app.command()(check.check)
app.command()(compare.compare)
app.command()(findings.findings)
app.command("next")(next.next_)
app.command()(report.report)
app.command()(serve.serve)
app.command()(export.export)


@app.command()
def run(
    config: ConfigArgument,
    overrides: SetOption = None,
    again: Annotated[bool, typer.Option("--again", help="Train anew what is there already.")] = False,
) -> None:
    """Preprocess, train, evaluate and register: the whole experiment with its variants."""
    experiment = _load(config, overrides)
    from pipelines.stages.run import run as stage

    print_results(experiment, stage(experiment, again=again))


@app.command()
def preprocess(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Read the annotations, embed the class names and cache the images' features."""
    experiment = _load(config, overrides)
    from pipelines.stages.preprocess import preprocess as stage

    prepared = stage(experiment)
    manifest, store = prepared.manifest, prepared.store
    print(
        f"manifest  {experiment.folder}/manifest.parquet: {len(manifest)} images, {len(manifest.class_names)} classes"
    )
    print(f"text      {prepared.record['text_embeddings']}")
    if store is not None:
        print(f"features  {store.folder.uri}: {len(store)} rows of {list(store.grid_shape)}")


@app.command()
def train(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Train, or go on with an interrupted training of the same experiment."""
    experiment = _load(config, overrides)
    from pipelines.stages.train import train_stage

    print(f"checkpoint  {train_stage(experiment)}")


@app.command()
def evaluate(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Evaluate the trained checkpoint on the test images."""
    experiment = _load(config, overrides)
    from pipelines.stages.run import evaluate_stage

    print_results(experiment, {experiment.name: evaluate_stage(experiment)})


@app.command()
def benchmark(
    config: ConfigArgument,
    methods: Annotated[str, typer.Option(help="Names separated by commas; variants; or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Trainings of each method.", min=1)] = 3,
    trials: Annotated[int | None, typer.Option(help="Settings tried on folds for each method.", min=1)] = None,
    overrides: SetOption = None,
) -> None:
    """Compare methods on equal terms: trained with several seeds, tested once, in one table."""
    experiment = _load(config, overrides)
    from pipelines.benchmark.run import benchmark as stage
    from pipelines.benchmark.run import command_line
    from pipelines.benchmark.table import HEADINGS

    words = command_line(config, methods, seeds, trials, overrides or [])
    result = stage(experiment, methods.split(","), seeds, trials, words)
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{experiment.name} (test mAP, %)")
    for heading in HEADINGS[:6]:
        table.add_column(heading, no_wrap=True, justify="left" if heading == "method" else "right")
    for row in result.table:
        table.add_row(*row[:6])
    Console(width=max(Console().width, 110)).print(table)  # a table that is cut off is none
    for failure in result.failures:
        print(f"no result: {failure}")
    print(f"{result.folder}/benchmark.md and benchmark.html; MLflow experiment {experiment.name}-benchmark")


app.command("few-shot")(few_shot.few_shot)


@app.command()
def tune(
    config: ConfigArgument,
    sweep: Annotated[Path, typer.Option(help="YAML file of the sweep.")],
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sweep.")] = False,
) -> None:
    """Search settings on held-out training images, then train and test the best ones."""
    from pipelines.sweeps.config import load_sweep

    searched = load_sweep(sweep, config, overrides or [])
    experiment = _load(config, overrides)
    from pipelines.sweeps.tune import tune as stage

    result = stage(experiment, searched, resume=resume)
    from pipelines.tracking.titles import rounded

    for path, value in result.settings.items():
        print(f"{path}={rounded(value)}")
    print(f"{searched.metric.replace('/', ' ')} {result.value:.1f} on held-out training images")
    print_results(result.experiment, {experiment.name: result.evaluation})
    if result.standing is not None:
        print_standing(result.standing)


@app.command()
def retrain(
    config: ConfigArgument,
    overrides: SetOption = None,
    sweep: Annotated[Path | None, typer.Option(help="YAML file of a sweep around the champion's settings.")] = None,
) -> None:
    """Train a challenger where data or configuration changed, and promote it if it beats the champion."""
    from pipelines.sweeps.config import load_sweep

    searched = load_sweep(sweep, config, overrides or []) if sweep else None
    experiment = _load(config, overrides)
    from pipelines.retraining.retrain import retrain as stage

    result = stage(experiment, searched)
    if result.decision == "nothing new":
        print(f"nothing to do: {result.reason}; version {result.champion} is the champion")
        return
    for metric in ("mAP", "mAP_head", "mAP_medium", "mAP_tail"):
        if result.metrics is not None and metric in result.metrics:
            print(f"test/{metric} {result.metrics[metric]:.2f}")
    if result.standing is not None:
        print_standing(result.standing)
    if result.folder is not None:
        print(f"outputs in {result.folder}")
    print(f"version {result.version}: {result.decision}; {result.reason}")
    print(f"champion  models:/{experiment.name}/{result.champion}")


@app.command()
def rollback(config: ConfigArgument, overrides: SetOption = None) -> None:
    """Make the champion before the present one the champion again."""
    experiment = _load(config, overrides)
    from pipelines.lock import alone
    from pipelines.tracking.registry import rollback as stage
    from pipelines.tracking.store import open_store

    with alone(experiment, "rollback"):
        present, previous = stage(open_store(experiment.output_dir), experiment.name)
    print(f"champion  models:/{experiment.name}/{previous} (was version {present})")


app.command(cls=predict.Command)(predict.predict)


@app.command("import-published")
def import_published(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Weights of the published CPRFL code.")],
    config: Annotated[Path, typer.Option(help="Experiment with its classes, text embeddings and encoder.")],
    overrides: SetOption = None,
) -> None:
    """Turn weights of the published CPRFL code into a checkpoint of the experiment."""
    experiment = _load(config, overrides)
    from pipelines.stages.import_published import import_published as convert

    print(f"checkpoint  {convert(checkpoint, experiment)}")


@app.command()
def ui(
    output_dir: Annotated[str, typer.Option(help="The experiments' output folder.")] = "outputs",
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
) -> None:
    """Serve MLflow's UI on this experiment store, on this machine only."""
    from pipelines.tracking.ui import serve

    sys.exit(serve(Path(output_dir).absolute(), port))


app.command()(cluster.submit)


@app.command()
def schedule(
    schedules: Annotated[Path, typer.Option(help="YAML file of the schedules.")] = Path("configs/schedules.yaml"),
    output_dir: Annotated[str, typer.Option(help="Dagster's store is in its folder dagster.")] = "outputs",
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's are told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 3000,
    ui_port: Annotated[int, typer.Option(help="Port of `cprfl ui`, to which links to MLflow lead.")] = 5000,
) -> None:
    """Serve Dagster's UI and run the scheduled retrainings."""
    from pipelines.retraining.server import serve

    serve(schedules, Path(output_dir).absolute() / "dagster", port, ui_port, host)


add_examples(app)


def _load(config: Path, overrides: list[str] | None) -> Experiment:
    from cprfl.progress import say

    say(f"reading {config}, loading PyTorch")  # before what takes seconds to import
    experiment = load(config, overrides)
    check_places(experiment)
    say(f"{experiment.name}: loading MLflow")
    return experiment


def main() -> None:
    """Run the command; mistakes of the user and faults of the machine end it with status 2 and a few lines."""
    with mistakes_told():
        try:
            with interrupts_heard():
                app(args=_options_first(sys.argv[1:]))
        except SystemExit as ended:
            flush()
            if was_interrupted(ended):
                say_where()
            raise


def _options_first(words: list[str]) -> list[str]:
    """The words with ``-q`` and ``-v`` in front, where people write them behind the command too."""
    general = {"-q", "-v", "--quiet", "--verbose"}
    return [word for word in words if word in general] + [word for word in words if word not in general]
