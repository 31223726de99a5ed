"""A sweep in MLflow: one parent run, one child run per trial, with its settings and the metrics of each epoch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import mlflow
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.visualization.matplotlib import plot_parallel_coordinate, plot_param_importances

from cprfl.data.files import write_json
from pipelines.tracking.notes import NOTE, escaped, link_to_run
from pipelines.tracking.runs import Run, process_tags
from pipelines.tracking.sink import MetricsSink
from pipelines.tracking.store import client
from pipelines.tracking.titles import KIND, PARENT, in_short


class TrialRuns:
    """The child runs of one sweep, written by the process that drives it.

    Args:
        run: of the sweep itself.
        record: file that remembers which run belongs to which trial, for a sweep that goes on later.
    """

    def __init__(self, run: Run, record: Path) -> None:
        self.uri, self.parent, self.record = run.sink.tracking_uri, run.id, record

    def name_sweep(self, trials: int) -> None:
        """Give the sweep's own run a name that says what it is."""
        client().update_run(self.parent, name=f"sweep ({trials} trials)")
        client().set_tag(self.parent, KIND, "sweep")

    @property
    def runs(self) -> dict[str, str]:
        """The run of each trial. Read anew: Tune restores this object as it was when the sweep began."""
        return json.loads(self.record.read_text()) if self.record.exists() else {}

    def start(self, trial: str, settings: dict[str, Any]) -> None:
        """Open the trial's run, if it has none yet."""
        runs = self.runs
        if trial in runs:
            client().update_run(runs[trial], status="RUNNING")
            for name, value in process_tags().items():
                client().set_tag(runs[trial], name, value)
            return
        parent = client().get_run(self.parent)
        tags = {**process_tags(), PARENT: self.parent, KIND: "trial", "trial": trial}
        tags["mlflow.runName"] = f"trial {len(runs) + 1}"
        tags[NOTE] = f"trial {len(runs) + 1} of {link_to_run(parent)}: {escaped(in_short(settings))}"
        run = client().create_run(parent.info.experiment_id, tags=tags)
        write_json(self.record, {**runs, trial: run.info.run_id})
        for name, value in settings.items():
            client().log_param(run.info.run_id, name, value)

    @contextmanager
    def killed_with_the_sweep(self) -> Iterator[None]:
        """Close the runs of unfinished trials where the user stops the sweep in the block; it goes on with them."""
        try:
            yield
        except KeyboardInterrupt:
            for run_id in self.runs.values():
                if client().get_run(run_id).info.status == "RUNNING":
                    client().set_terminated(run_id, "KILLED")
            raise

    def flush(self) -> None:
        """Send what an earlier process could not."""
        for trial in self.runs:
            self._sink(trial).flush()

    def log(self, trial: str, metrics: dict[str, float], epoch: int) -> None:
        """Log the metrics of one epoch."""
        self._sink(trial).log({name: float(value) for name, value in metrics.items()}, epoch)

    def end(self, trial: str, status: str, tags: dict[str, str]) -> None:
        """Close the trial's run."""
        self._sink(trial).flush()
        for name, value in tags.items():
            client().set_tag(self.runs[trial], name, value[:5000])
        client().set_terminated(self.runs[trial], status)

    def _sink(self, trial: str) -> MetricsSink:
        run_id = self.runs[trial]
        return MetricsSink(self.uri, run_id, str(self.record.parent / "unsent" / f"{run_id}.jsonl"))


def log_sweep(metric: str, trials: list[tuple[dict[str, Any], float]], best: dict[str, Any], value: float) -> None:
    """Log to the active run what a sweep found, with plots of which settings matter and of all trials."""
    mlflow.log_metric(f"best/{metric}", value)
    mlflow.set_tags({f"best.{name}": setting for name, setting in best.items()})
    table = {name: [settings[name] for settings, _ in trials] for name in best}
    mlflow.log_table({**table, metric: [result for _, result in trials]}, "trials.json")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for settings, result in trials:
        study.add_trial(optuna.trial.create_trial(params=settings, distributions=_distributions(trials), value=result))
    plots: dict[str, Any] = {"parallel_coordinates.png": plot_parallel_coordinate}
    if len({result for _, result in trials}) > 1:  # importance explains differences
        plots["importance.png"] = plot_param_importances
    for name, plot in plots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental", and axes of settings that were tried with one value
            figure: Any = plot(study, target_name=metric).figure
        figure.set_size_inches(11, 6)
        figure.tight_layout()
        mlflow.log_figure(figure, name)
        plt.close(figure)


def _distributions(trials: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    """Optuna's distributions that hold all values that were tried."""
    found: dict[str, Any] = {}
    for name in trials[0][0]:
        values = [settings[name] for settings, _ in trials]
        if all(isinstance(value, float) for value in values) and len(set(values)) > 1:
            found[name] = FloatDistribution(min(values), max(values))
        else:
            found[name] = CategoricalDistribution(list(dict.fromkeys(values)))
    return found
