"""Two people write the same to one MLflow at the same moment: both have looked, and nothing was there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy
from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModelAlias
from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlExperiment, SqlExperimentTag
from sqlalchemy.orm import Session

from cprfl.data.manifest import TRAIN, Manifest
from cprfl.experiment import load
from pipelines.tracking.registry import champion, promote
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import Store, client, open_store
from tests.helpers import use_database


@pytest.fixture
def store(tmp_path: Path, database: Path) -> Store:
    """An MLflow that nobody has written to."""
    use_database(tmp_path, database)
    return open_store(str(tmp_path))


@contextmanager
def both_have_looked(row: type[Any]) -> Iterator[None]:
    """Nobody adds a row of this kind before two have found none."""
    barrier, waited = threading.Barrier(2), list[type]()

    def wait(session: Session, *_: Any) -> None:
        if len(waited) < 2 and any(isinstance(new, row) for new in session.new):
            waited.append(row)
            barrier.wait(60)

    sqlalchemy.event.listen(Session, "before_flush", wait)
    try:
        yield
    finally:
        sqlalchemy.event.remove(Session, "before_flush", wait)
    assert len(waited) == 2


def by_both(write: Callable[[int], Any]) -> list[Any]:
    """What it gives to each of two."""
    with ThreadPoolExecutor(2) as people:
        return list(people.map(write, range(2)))


@pytest.mark.parametrize("row", [SqlExperiment, SqlExperimentTag])
def test_both_get_the_experiment_that_one_of_them_makes(store: Store, row: type[Any]) -> None:
    if row is SqlExperimentTag:
        mlflow.create_experiment("birds")  # by MLflow's own means: without its kind
    with both_have_looked(row):
        made = by_both(lambda number: Store(store.uri, store.artifact_root).experiment_id("birds"))
    found = mlflow.get_experiment_by_name("birds")
    assert found is not None and made == [found.experiment_id] * 2
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_runs_of_both_have_the_data_set(store: Store, tmp_path: Path) -> None:
    experiment = load("configs/demo.yaml", [f"output_dir={tmp_path}"])
    manifest = Manifest(("robin",), ("a",), ("a.png",), (TRAIN,), ((0,),))
    store.experiment_id(experiment.name)

    def run(number: int) -> str:
        with open_run(store, experiment, name=str(number), data=manifest, own_metrics=False) as opened:
            return opened.id

    with both_have_looked(SqlDataset):
        ids = by_both(run)
    inputs = [client().get_run(run_id).inputs.dataset_inputs for run_id in ids]
    assert [[found.dataset.digest for found in of_run] for of_run in inputs] == [[manifest.digest[:36]]] * 2


def test_one_of_two_first_champions_is_the_champion(store: Store) -> None:
    client().create_registered_model("birds")
    for _ in range(2):
        client().create_model_version("birds", store.artifact_root)
    with both_have_looked(SqlRegisteredModelAlias):
        assert by_both(lambda number: promote(store, "birds", str(number + 1), "key", "the first")) == [None, None]
    assert champion(store, "birds") in {"1", "2"}
