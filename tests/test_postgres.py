"""MLflow on a real PostgreSQL: two sweeps at once lose nothing, the alias moves whole, a backup is restored."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cprfl.experiment import Experiment, load
from pipelines.sweeps.record import Trials
from pipelines.tracking.registry import champion, promote
from pipelines.tracking.store import Store, open_store
from tests.helpers import call, runs, sweep_file, write_config
from tests.mlflow_on_postgres import PASSWORD, Postgres, mlflow_server, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("postgres")]  # one server for all

ROOT = Path(__file__).parent.parent
README = (ROOT / "infra" / "README.md").read_text()
EPOCHS, TRIALS, METRICS = 2, 2, ("train/loss", "val/mAP")


@dataclass(frozen=True)
class Machine:
    """One on which `infra/compose.yaml` is up.

    Attributes:
        database: of MLflow.
        bucket: URI of that for artifacts.
        environment: by which `docker compose` in the README's commands finds both.
    """

    database: Postgres
    bucket: str
    environment: dict[str, str]

    def shell(self, script: str, folder: Path) -> None:
        """Run commands of the README in a folder."""
        docker = folder / "bin" / "docker"
        docker.parent.mkdir(exist_ok=True)
        docker.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.compose_here "$@"\n')
        docker.chmod(0o755)
        own = {**os.environ, **self.environment, "PATH": f"{docker.parent}:{os.environ['PATH']}"}
        words = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(words, cwd=folder, env=own, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Written:
    """What two people have written.

    Attributes:
        machine: where.
        server: address of its MLflow.
        experiments: of each.
        status: of both commands, the highest.
        output: of both.
    """

    machine: Machine
    server: str
    experiments: list[Experiment]
    status: int
    output: str


def commands(heading: str) -> list[str]:
    """The blocks of commands in a section of the README."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


COPY, BACK_UP, RESTORE = commands("Back up and restore")


def machine(database: Postgres, s3_server: dict[str, str], bucket: str) -> Machine:
    """One whose bucket is not there yet."""
    return Machine(database, f"s3://{bucket}", {**s3_server, **database.environment, "HERE_BUCKET": bucket})


def person(folder: Path, photos: Path, empty: Path, features: Path) -> Experiment:
    """An experiment of one of two people: own results, but the name, the data and the cached features of both."""
    folder.mkdir()
    train = {"epochs": EPOCHS, "batch_size": 8, "lr": 0.003}
    path = write_config(folder / "small.yaml", photos, empty, train=train, feature_dir=str(features))
    sweep_file(folder / "sweep.yaml", trials=TRIALS, scheduler="none")
    return load(path)


def sweep_at_once(experiments: list[Experiment], server: str) -> tuple[int, str]:
    """`cprfl tune` of all of them, each in a process of its own: the highest exit status, and what they said."""
    folders = [Path(experiment.output_dir).parent for experiment in experiments]
    lines = [f"tune {folder}/small.yaml --sweep {folder}/sweep.yaml" for folder in folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": server}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sweeping", *lines], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=800, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, s3_server: dict[str, str], photos: Path, features: Path, database: Path
) -> Iterator[Written]:
    """What two sweeps of one name wrote at the same time."""
    folder = tmp_path_factory.mktemp("postgres")
    with pytest.MonkeyPatch.context() as patched, postgres() as server:
        patched.setenv("PGPASSWORD", PASSWORD)
        for name, value in s3_server.items():
            patched.setenv(name, value)
        used = machine(server, s3_server, "mlflow-of-the-tests")
        used.shell("docker compose -f infra/compose.yaml run --rm bucket", folder)
        with mlflow_server(server.uri, used.bucket, folder / "server.log") as address:
            experiments = [person(folder / name, photos, database, features) for name in ("first", "second")]
            yield Written(used, address, experiments, *sweep_at_once(experiments, address))


def test_two_sweeps_at_once_lose_nothing(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written.status == 0, written.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", written.server)
    found = runs(written.experiments[0])
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(found) == 2 * (1 + TRIALS + 1)  # a sweep, its trials, its winner
    winners = {run.data.tags["cprfl.folder"]: run for run in found if run.data.tags.get("sweep") == "winner"}
    assert len(winners) == 2
    for experiment in written.experiments:
        (folder,) = (experiment.folder / "sweeps").glob("[0-9]*/")
        (parent,) = [run for run in found if run.data.tags.get("sweep") == folder.name]
        children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        by_number = {int(child.data.tags["trial"]): child for child in children}
        winner = winners[str(experiment.folder)]
        assert winner.data.tags["cprfl.sweep_run"] == parent.info.run_id
        assert sorted(by_number) == list(range(1, TRIALS + 1)) and len(children) == TRIALS
        for trial in Trials(folder / "record"):  # on this person's disk
            run = by_number[trial.number]
            assert {name: float(value) for name, value in run.data.params.items()} == trial.settings
            assert [report.epoch for report in trial.reports] == list(range(1, EPOCHS + 1))
            for metric in METRICS:
                told = [(report.epoch, report.metrics[metric]) for report in trial.reports]
                assert history(run.info.run_id, metric) == told


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    """A metric's epochs and values."""
    return [(found.step, found.value) for found in mlflow.MlflowClient().get_metric_history(run_id, metric)]


def test_there_is_a_champion_at_every_moment(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two move the alias through the server while a third reads what the database holds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", written.server)
    store = open_store(written.experiments[0].output_dir)
    reader = mlflow.MlflowClient(tracking_uri=written.machine.database.uri)
    versions = {str(version.version) for version in reader.search_model_versions("name = 'small'")}
    assert versions == {"1", "2"}  # the winner of each
    assert champion(store, "small") in versions
    failures: list[BaseException] = []

    def move(order: tuple[str, str]) -> None:
        try:
            for version in order * 5:
                promote(store, "small", version, "key", "a test")
        except Exception as error:  # which a thread would only print
            failures.append(error)

    movers = [threading.Thread(target=move, args=(order,)) for order in (("1", "2"), ("2", "1"))]
    for mover in movers:
        mover.start()
    seen = []
    while any(mover.is_alive() for mover in movers):
        seen.append(str(reader.get_model_version_by_alias("small", "champion").version))  # raises where there is none
    assert failures == []
    assert set(seen) == versions


def artifacts(run_id: str, folder: str | None = None) -> Iterator[str]:
    """A run's files."""
    for item in mlflow.MlflowClient().list_artifacts(run_id, folder):
        if item.is_dir:
            yield from artifacts(run_id, item.path)
        else:
            yield item.path


def state(store: Store) -> dict[str, Any]:
    """Every run, with its settings, tags, metrics and files, and where the alias is."""
    found = mlflow.MlflowClient().search_runs([store.experiment_id("small")], max_results=1000)
    return {
        "champion": champion(store, "small"),
        **{
            run.info.run_id: {
                "status": run.info.status, "params": run.data.params, "tags": run.data.tags,
                "files": sorted(artifacts(run.info.run_id)),
                "histories": {metric: history(run.info.run_id, metric) for metric in run.data.metrics},
            }
            for run in found
        },
    }  # fmt: skip


def test_what_the_readme_says_of_backups_gives_the_same_champion_on_another_machine(
    written: Written, s3_server: dict[str, str], photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["predict", "models:/small@champion", str(photos), "--json", "--output-dir", str(tmp_path)]

    def look(server: str) -> tuple[dict[str, Any], Any]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        status, printed, err = call(monkeypatch, capsys, *words)
        assert status == 0, err
        return state(open_store(str(tmp_path))), json.loads(printed)

    before, scores = look(written.server)
    written.machine.shell(COPY + BACK_UP, tmp_path)
    with postgres() as server:
        other = machine(server, s3_server, "another-name")
        other.shell(COPY + RESTORE, tmp_path)
        dump = server.run("pg_dump", "-U", "mlflow", "mlflow")
        assert written.machine.bucket not in dump  # or files would come from the first one, as long as it is there
        with mlflow_server(server.uri, other.bucket, tmp_path / "server.log") as address:
            after, restored = look(address)
    assert after == before
    assert any("report.html" in run["files"] for run in after.values() if isinstance(run, dict))
    assert restored == scores and scores
