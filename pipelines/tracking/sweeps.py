"""A sweep in MLflow: one parent run, one child run per trial, with its settings and the metrics of each epoch."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import matplotlib.pyplot as plt
import mlflow
import optuna
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.visualization.matplotlib import plot_parallel_coordinate, plot_param_importances

from cprfl.progress import say
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.notes import NOTE, escaped, link_to_run
from pipelines.tracking.runs import Run, process_tags
from pipelines.tracking.sink import PASSING
from pipelines.tracking.store import Store, answers, client, mlflow_mistakes, unreachable
from pipelines.tracking.titles import KIND, PARENT, in_short

_BATCH = 1000  # metrics that MLflow takes in one request
_SECONDS_BETWEEN_TRIES, _SECONDS_TO_WAIT = 5.0, 300.0
_NUMBER = "trial"
_TABLES = "mlflow.loggedArtifacts"  # the tag by which MLflow's UI finds tables


@dataclass(frozen=True)
class TrialState:
    """All that MLflow is to know of a trial.

    Attributes:
        number: counted from 1.
        settings: that it began with.
        points: epoch, milliseconds since 1970 and metrics of what it told.
        status: of its run.
        tags: of its run, once it has ended.
    """

    number: int
    settings: dict[str, Any]
    points: Sequence[tuple[int, int, dict[str, float]]]
    status: Literal["RUNNING", "FINISHED", "FAILED"]
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class _Sent:
    """What a trial's run has by now."""

    run_id: str
    status: str
    params: bool = False
    times: set[int] = field(default_factory=set)


class TrialRuns:
    """The child runs of one sweep, written by the process that drives it.

    They follow what the sweep writes down of its trials: a run is found again by its trial's number, and what a server
    did not take because it was away is sent with the next state that it takes. Sending twice changes nothing.
    """

    def __init__(self, run: Run) -> None:
        self.uri, self.parent = run.sink.tracking_uri, run.id
        with mlflow_mistakes(self.uri):
            found = client().get_run(self.parent)
            self.experiment_id, self.link = found.info.experiment_id, link_to_run(found)
            self.sent = self._children()
        self.waiting: dict[int, TrialState] = {}
        self.away_until: float | None = None

    def name_sweep(self, trials: int) -> None:
        """Give the sweep's own run a name that says what it is."""
        with mlflow_mistakes(self.uri):
            client().update_run(self.parent, name=f"sweep ({trials} trials)")
            client().set_tag(self.parent, KIND, "sweep")

    def write(self, state: TrialState) -> None:
        """Bring the trial's run to a state, now or when the server is back."""
        self.waiting[state.number] = state
        if self.away_until is None or time.monotonic() > self.away_until:
            self._send()

    def catch_up(self) -> None:
        """Send what is still to be sent, waiting for a server that is away.

        Raises:
            TrackingError: where it stays away.
        """
        deadline = time.monotonic() + _SECONDS_TO_WAIT
        while not self._send():
            if time.monotonic() > deadline:
                raise unreachable(self.uri, "stopped answering")
            time.sleep(_SECONDS_BETWEEN_TRIES)

    @contextmanager
    def closed_with_the_sweep(self) -> Iterator[None]:
        """Close the runs of unfinished trials where the block is left by an exception; a resumed sweep reopens them."""
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            for sent in self.sent.values():
                if sent.status == "RUNNING" and answers(self.uri):
                    client().set_terminated(sent.run_id, status)
            raise

    def _children(self) -> dict[int, _Sent]:
        """The runs that an earlier process opened."""
        found, token = dict[int, _Sent](), None
        while True:
            page = client().search_runs([self.experiment_id], f"tags.`{PARENT}` = '{self.parent}'", page_token=token)
            for run in page:
                number = run.data.tags.get(_NUMBER, "")
                if number.isdecimal():
                    found[int(number)] = _Sent(run.info.run_id, run.info.status)
            if not (token := page.token):
                return found

    def _send(self) -> bool:
        """Bring all runs to their states; whether the server took it."""
        for number, state in sorted(self.waiting.items()):
            with mlflow_mistakes(self.uri):
                try:
                    self._bring(state)
                except MlflowException as error:
                    if answers(self.uri) and error.error_code not in PASSING:
                        raise  # it answers, and refuses: the run was deleted, for example
                    if self.away_until is None:
                        say("MLflow does not answer; what trials report is kept, and sent when it is back")
                    self.away_until = time.monotonic() + _SECONDS_BETWEEN_TRIES
                    return False
            del self.waiting[number]
        if self.away_until is not None:
            say("MLflow answers again, and has what was kept")
        self.away_until = None
        return True

    def _bring(self, state: TrialState) -> None:
        sent = self.sent.get(state.number)
        if sent is None:
            sent = self.sent[state.number] = self._open(state)
        elif sent.status == state.status == "FINISHED":  # which it only became with all that it is to have
            return
        elif sent.status != state.status and state.status == "RUNNING":  # of an earlier process
            client().update_run(sent.run_id, status="RUNNING")
            client().log_batch(sent.run_id, tags=[RunTag(*tag) for tag in process_tags().items()])
            sent.status = "RUNNING"
        params = [] if sent.params else [Param(name, str(value)) for name, value in state.settings.items()]
        new = [point for point in state.points if point[1] not in sent.times]
        metrics = [
            Metric(name, value, told, epoch)
            for epoch, told, values in new
            for name, value in mlflow_names(values).items()
        ]
        tags = [RunTag(name, value[:5000]) for name, value in state.tags.items()]
        for start in range(0, len(metrics) or 1, _BATCH):
            client().log_batch(sent.run_id, metrics[start : start + _BATCH], params, tags)
        sent.params, sent.times = True, sent.times | {told for _, told, _ in new}
        if state.status != "RUNNING":
            client().set_terminated(sent.run_id, state.status)
            sent.status = state.status

    def _open(self, state: TrialState) -> _Sent:
        name = f"trial {state.number}"
        tags = {
            **process_tags(), PARENT: self.parent, KIND: "trial", _NUMBER: str(state.number),
            NOTE: f"{name} of {self.link}: {escaped(in_short(state.settings))}",
        }  # fmt: skip
        run = client().create_run(self.experiment_id, tags=tags, run_name=name)
        return _Sent(run.info.run_id, "RUNNING")


def sweep_run(store: Store, experiment_name: str, sweep: str) -> str | None:
    """The run of a sweep that an earlier process opened."""
    wanted = f"tags.sweep = '{sweep}'"
    with mlflow_mistakes(store.uri):
        found = client().search_runs([store.experiment_id(experiment_name)], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def log_sweep(metric: str, trials: list[tuple[dict[str, Any], float]], best: dict[str, Any], value: float) -> None:
    """Log to the active run what a sweep found, with plots of which settings matter and of all trials."""
    mlflow.log_metric(f"best/{metric}", value)
    mlflow.set_tags({f"best.{name}": setting for name, setting in best.items()})
    rows = [[*(settings[name] for name in best), result] for settings, result in trials]
    mlflow.log_dict({"columns": [*best, metric], "data": rows}, "trials.json")  # log_table would add the rows again
    mlflow.set_tag(_TABLES, json.dumps([{"path": "trials.json", "type": "table"}]))
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
