"""A damaged file of ours is named with its mend, or made anew: no command gives another result because of it."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cprfl.experiment import Experiment, load
from tests.damaging import DAMAGES, MEND, flip
from tests.helpers import call, write_config

# Below `outputs`; every other file is damaged, those of whoever adds one too.
EXEMPT = {
    r"mlflow/.*": "MLflow's own; the registered model has a test below, its database one in test_environment",
    r"\.locks/.*|.*\.lock": "locks: what they say is for people",
    r"small/(report\.html|.*\.png|.*\.csv)": "for people, and read by nobody here",
}
# Who reads a file; nobody is left out for a file that is not known here.
READERS = {
    r"cache/(features|text|splits|encoders)/.*": ["run", "evaluate", "features"],
    r"small/(manifest.parquet|prepared.json)": ["check", "run", "ls", "prune"],
    r"cache/baselines/.*": ["evaluate", "check"],
    r"cache/manifests/.*": ["run", "evaluate"],
    r"small/checkpoint/.*": ["predict", "evaluate", "run"],
    r"small/(evaluation.json|predictions.parquet|comparison.json|baselines/.*)": ["check", "run", "findings"],
    r"small/run.json": ["run", "evaluate"],
    r"small/retraining/.*": ["retrain", "ls", "prune"],
}
EVERYBODY = ["run", "evaluate", "predict", "check", "findings", "features", "retrain"]


@dataclass
class Finished:
    """A finished experiment, what its commands say, and a copy of all that it left."""

    experiment: Experiment
    config: Path
    copy: Path
    said: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return Path(self.experiment.output_dir)

    def words(self, command: str) -> list[str]:
        config, folder = str(self.config), self.experiment.folder
        images = str(Path(self.experiment.data_root) / "00.png")
        return {
            "champion": ["predict", "models:/small@champion", images, "--output-dir", str(self.output)],
            "predict": ["predict", str(folder / "checkpoint"), images, "--output-dir", str(self.output)],
            "features": ["features", "verify", "--output-dir", str(self.output)],
            "ls": ["features", "ls", "--output-dir", str(self.output)],
            "prune": ["features", "prune", "--unused", "--output-dir", str(self.output)],
        }.get(command, [command, config])

    def files(self) -> list[str]:
        """Of every file that somebody reads, its path below the output folder."""
        names = [str(path.relative_to(self.copy)) for path in sorted(self.copy.rglob("*")) if path.is_file()]
        return [name for name in names if not any(re.fullmatch(pattern, name) for pattern in EXEMPT)]

    def restore(self) -> None:
        """Put back all but MLflow's store, which only grows."""
        for name in ("small", "cache"):
            shutil.rmtree(self.output / name)
            shutil.copytree(self.copy / name, self.output / name)

    def results(self) -> dict[str, bytes]:
        """What must not change."""
        names = ("evaluation.json", "predictions.parquet", "manifest.parquet")
        return {name: (self.experiment.folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: Path, database: Path) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("damage")
    dataset = {
        "name": "csv",
        "splits": {"train": "train.csv"},
        "split": {"test": 0.3},
        "groups": {"head": 8, "tail": 6},
    }
    train = {"epochs": 2, "batch_size": 8, "lr": 0.003, "validation": 0.2}
    config = write_config(folder / "small.yaml", photos, database, dataset=dataset, train=train)
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        from pipelines.retraining.retrain import retrain
        from pipelines.stages.run import run

        experiment = load(config, [])
        run(experiment)
        retrain(experiment)
    shutil.copytree(experiment.output_dir, folder / "copy")
    yield Finished(experiment, config, folder / "copy")


@pytest.fixture(autouse=True)
def without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is for people, and takes seconds."""
    monkeypatch.setattr(
        "pipelines.stages.run.write_report", lambda experiment, *_: (experiment.folder / "report.html").touch()
    )


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_command_gives_another_result_because_a_file_is_damaged(
    finished: Finished, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn, wrong = list(DAMAGES).index(damage), []
    assert len(finished.files()) > 15
    for name in finished.files():
        readers = next((found for pattern, found in READERS.items() if re.fullmatch(pattern, name)), EVERYBODY)
        command = readers[turn % len(readers)]
        if command not in finished.said:
            status, out, _ = call(monkeypatch, capsys, *finished.words(command))
            assert status == 0, command
            finished.said[command] = out, finished.results()
            finished.restore()
        path = finished.output / name
        path.write_bytes(DAMAGES[damage](path.read_bytes(), random.Random(f"{damage} {name}")))
        try:
            problem = outcome(finished, command, path, *call(monkeypatch, capsys, *finished.words(command)))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        finished.restore()
        if problem:
            wrong.append(f"{command}, {damage} of {name}: {problem}")
    assert not wrong, "\n".join(wrong)


def outcome(finished: Finished, command: str, path: Path, status: int, out: str, err: str) -> str:
    """What is wrong with the end of a command; nothing where it named the file or gave the same result."""
    if status == 2:
        named = path.name in err or str(path.parent) in err  # a feature store is a folder
        return "" if named and MEND.search(err) else f"does not name file and mend: {err}"
    if status != 0:
        return f"status {status}: {err}"
    said, results = finished.said[command]
    found = finished.results()
    changed = [name for name, content in results.items() if found[name] != content and name != path.name]
    if changed or (out != said and command not in ("ls", "prune")):
        return f"another result: {changed} {out} instead of {said}; {err}"
    return ""


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew_and_that_is_said(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("text", "manifests"):
        (path,) = (finished.output / "cache" / name).iterdir()
        content = path.read_bytes()
        path.write_bytes(flip(content, random.Random(0)))
        status, _, err = call(monkeypatch, capsys, *finished.words("run"))
        assert status == 0 and path.read_bytes() == content
        assert name == "manifests" or f"{path.name}: damaged" in err  # which is written by every command


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_registered_model_gives_no_other_scores(
    finished: Finished, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model,) = (finished.copy / "mlflow" / "artifacts" / "models").glob("*/artifacts")
    status, said, err = call(monkeypatch, capsys, *finished.words("champion"))
    assert status == 0, err
    for name in ("model.safetensors", "facts.safetensors", "checkpoint.json", "decisions.json", "encoder.safetensors"):
        (whole,) = model.rglob(name)
        path = finished.output / whole.relative_to(finished.copy)
        path.write_bytes(DAMAGES[damage](whole.read_bytes(), random.Random(f"{damage} {name}")))
        status, out, err = call(monkeypatch, capsys, *finished.words("champion"))
        shutil.copy(whole, path)
        unchanged = status == 0 and out == said and name.endswith(".json")  # a space that became a tab, for example
        assert unchanged or (status == 2 and name in err and MEND.search(err)), err


@pytest.mark.slow
def test_files_have_the_mode_that_the_umask_says(finished: Finished) -> None:
    private = {path for path in finished.copy.rglob("*") if path.stat().st_mode & 0o044 != 0o044}
    assert not private
