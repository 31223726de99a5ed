"""SIGKILL at seeded moments: the same command, given once more, ends as if nobody had disturbed it."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import sweep_file, write_config
from tests.killing import Kitchen, kitchen

SEED = 15
# What is killed: the command, the state that it starts from, and in which phase each kill falls.
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "preprocess": ("nothing", ("other", "other")),
    "train": ("preprocess", ("other", "other", "other", "clean up")),
    "evaluate": ("train", ("other", "other", "report")),
    "run": ("preprocess", ("register", "register", "promote", "report", "clean up")),
    "retrain": ("run", ("register", "promote", "adopt", "other", "other")),
    "tune": ("preprocess", ("register",)),
}
# A champion that has learned nothing, and a challenger that takes its place.
SETTINGS = {
    "run": ["train.epochs=2", "train.lr=1e-9"],
    "retrain": ["promotion.confidence=0", "promotion.max_group_loss=100"],
}
PASSING = ("system/%", "extraction/%")  # metrics that measure the machine


@dataclass(frozen=True)
class State:
    """What a command leaves: names of files, bytes of those that hold results, and what MLflow knows."""

    files: list[str]
    results: dict[str, bytes]
    finished: list[dict[str, float]]
    versions: list[dict[str, str]]

    @classmethod
    def of(cls, outputs: Path, temporary: Path) -> State:
        database = outputs / "mlflow" / "mlflow.db"
        found = [path for path in sorted(outputs.rglob("*")) if path.is_file()]
        named = {str(path.relative_to(outputs)): path for path in found}
        own = {name: path for name, path in named.items() if not name.startswith(("mlflow/", ".locks/"))}
        steady = [name for name in own if "/sweeps/" not in name]  # whose folders bear the time
        kept = {n: own[n].read_bytes() for n in steady if n.endswith((".safetensors", "decisions.json", "parquet"))}
        left = sorted(path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor"))
        return cls(steady + left, kept, _finished(database), _versions(database))


def _rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def _finished(database: Path) -> list[dict[str, float]]:
    """Metrics of the runs that ended well."""
    own = " AND ".join(f"key NOT LIKE '{name}'" for name in PASSING)
    found = []
    for (run,) in _rows(database, "SELECT run_uuid FROM runs WHERE status = 'FINISHED'"):
        found.append(dict(_rows(database, f"SELECT key, value FROM latest_metrics WHERE run_uuid = '{run}' AND {own}")))
    return sorted(found, key=lambda metrics: sorted(metrics.items()))


def _versions(database: Path) -> list[dict[str, str]]:
    """Of each version its number, alias and decision, and which one it took the place of."""
    aliases = dict(_rows(database, "SELECT version, alias FROM registered_model_aliases"))
    found = []
    for (version,) in _rows(database, "SELECT version FROM model_versions ORDER BY version"):
        query = f"SELECT key, value FROM model_version_tags WHERE version = {version} AND key != 'cprfl.verdict'"
        tags = {key: value for key, value in _rows(database, query) if "mlflow" not in key}
        found.append({**tags, "version": str(version), "alias": aliases.get(version, "")})
    return found


class Kills:
    """Runs stages undisturbed, keeps what each leaves to start others from, and kills them."""

    def __init__(self, folder: Path, photos: Path, database: Path, commands: Kitchen) -> None:
        self.folder, self.outputs, self.commands = folder, folder / "outputs", commands
        config = str(write_config(folder / "small.yaml", photos, database))
        sweep = sweep_file(folder / "sweep.yaml", trials=2)
        self.words = {name: [name, config] for name in STAGES}
        for name, settings in SETTINGS.items():
            self.words[name] += [word for setting in settings for word in ("--set", setting)]
        self.words["tune"] += ["--sweep", str(sweep)]
        self.undisturbed: dict[str, tuple[State, list[str]]] = {}
        shutil.copytree(self.outputs, folder / "nothing")

    def start_from(self, state: str) -> None:
        """Bring the output folder into the state after a stage, or before all."""
        if state != "nothing" and state not in self.undisturbed:
            self.run_undisturbed(state)
        shutil.rmtree(self.outputs)
        shutil.copytree(self.folder / state, self.outputs)
        for left in self.temporary.iterdir():
            shutil.rmtree(left)

    @property
    def temporary(self) -> Path:
        return self.commands.folder / "tmp"

    def run_undisturbed(self, stage: str) -> tuple[State, list[str]]:
        """What a stage leaves, and its moments."""
        if stage not in self.undisturbed:
            self.start_from(STAGES[stage][0])
            ended = self.commands.run(*self.words[stage])
            assert ended.status == 0, ended.output
            shutil.copytree(self.outputs, self.folder / stage)
            self.undisturbed[stage] = State.of(self.outputs, self.temporary), ended.moments
        return self.undisturbed[stage]


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory, photos: Path, database: Path) -> Iterator[Kills]:
    folder = tmp_path_factory.mktemp("kills")
    with kitchen(folder / "logs") as commands:
        yield Kills(folder, photos, database, commands)


def cases() -> list[Any]:
    return [
        pytest.param(stage, phase, number, id=f"{stage}-{phase.replace(' ', '-')}-{number}")
        for stage, (_, phases) in STAGES.items()
        for number, phase in enumerate(phases)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "phase", "number"), cases())
def test_the_same_command_ends_as_if_undisturbed(kills: Kills, stage: str, phase: str, number: int) -> None:
    expected, moments = kills.run_undisturbed(stage)
    within = [what for what in moments if what.startswith(f"{phase}: ")]
    # Cleaning up, the first step is the last that matters: after it the command is as good as done.
    kill_at = 0 if phase == "clean up" else random.Random(f"{SEED} {stage} {number}").randrange(len(within))
    kills.start_from(STAGES[stage][0])
    killed = kills.commands.run(*kills.words[stage], kill_at=(phase, kill_at))
    where = f"killed at {kill_at} of {len(within)}, before {within[kill_at]}"
    assert killed.status == -9, f"{where}\n{killed.output}"
    again = kills.commands.run(*kills.words[stage], *(["--resume"] if stage == "tune" else []))
    assert again.status == 0, f"{where}\n{again.output}"
    found = State.of(kills.outputs, kills.temporary)
    assert found.files == expected.files, where
    assert found.versions == expected.versions, where
    assert found.finished == expected.finished, where
    assert found.results == expected.results, where
    database = kills.outputs / "mlflow" / "mlflow.db"
    assert not _rows(database, "SELECT run_uuid FROM runs WHERE status = 'RUNNING'"), where
    learned = "SELECT runs.run_uuid FROM runs JOIN latest_metrics USING (run_uuid) WHERE status != 'FINISHED'"
    assert not _rows(database, f"{learned} AND key = 'train/loss'"), where
