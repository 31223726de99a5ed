"""Two people begin an experiment of one name on one MLflow at the same moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines.tracking.store import Store, open_store
from tests.helpers import use_database


def test_both_get_the_experiment_that_one_of_them_makes(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_database(tmp_path, database)
    opened = open_store(str(tmp_path))
    both_looked, look = threading.Barrier(2), mlflow.get_experiment_by_name

    def looked(name: str) -> Any:
        found = look(name)
        if found is None:
            both_looked.wait(60)  # nobody makes it before the other has found none
        return found

    monkeypatch.setattr(mlflow, "get_experiment_by_name", looked)
    made: list[str | BaseException] = []

    def begin() -> None:
        try:
            made.append(Store(opened.uri, opened.artifact_root).experiment_id("birds"))
        except Exception as error:  # which a thread would only print
            made.append(error)

    people = [threading.Thread(target=begin) for _ in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    found = look("birds")
    assert found is not None and made == [found.experiment_id] * 2
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
