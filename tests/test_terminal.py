"""What a person sees in a terminal: progress, interruptions, help."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
import types
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl import progress
from cprfl.data.manifest import Manifest
from cprfl.experiment import load
from pipelines.cli import interrupting
from pipelines.cli.app import app
from pipelines.cli.examples import EXAMPLES
from pipelines.tracking.store import open_existing_store
from tests.helpers import call, command, free_ports, runs, sweep_file, wait_for


def test_a_rate_is_measured_from_the_first_step_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 100.0, 116.0, 132.0, 133.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.progress(range(4), 4, "encoding")) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "encoding: 1/4, 100 s",
        "encoding: 2/4, 116 s, 16.0 s each, 32 s left",
        "encoding: 3/4, 2 min, 16.0 s each, 16 s left",
        "encoding: 4/4, 2 min, 11.0 s each",
    ]
    assert progress.standing() == "at 4 of 4 (encoding)"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_progress_passes_on_what_it_gets_and_always_ends_with_a_line(sizes: list[int]) -> None:
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "say", shown.append)
        assert list(progress.progress(sizes, sum(sizes), "reading", size=lambda size: size)) == sizes
    assert shown[-1].startswith(f"reading: {sum(sizes)}/{sum(sizes)}, ")


def test_quiet_shows_results_only_and_verbose_the_time(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        words = ["--set", "train.epochs=1", "--set", "decisions.folds=0"]
        status, out, err = call(monkeypatch, capsys, "train", str(small_config), "-q", *words)
        assert status == 0
        assert out.startswith("checkpoint  ")
        assert "reading" not in err
        assert "epoch" not in err
        _, _, err = call(monkeypatch, capsys, "-v", "train", str(small_config), *words)
        assert err.splitlines()[0].endswith(f"s] reading {small_config}, loading PyTorch")
        assert "epoch 1/1" in err
    finally:
        progress.set_verbosity(progress.NORMAL)


def test_versions_are_those_of_what_it_stands_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call(monkeypatch, capsys, "--version")
    assert status == 0
    assert all(f"{name} " in out for name in ("cprfl", "torch", "ray", "mlflow"))


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_each_example_is_a_command_that_is_understood(line: str) -> None:
    import typer

    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    context = command.make_context("cprfl", [], resilient_parsing=True)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(str(command.name), words, parent=context)  # raises where an option is not known


def test_every_command_shows_an_example() -> None:
    import typer

    def without(command: object, name: str = "") -> list[str]:
        below = getattr(command, "commands", None)
        if below is None:
            return [] if getattr(command, "epilog", None) else [name]
        return [found for key, value in below.items() for found in without(value, f"{name} {key}".strip())]

    assert not without(typer.main.get_command(app))


def interrupted(number: signal.Signals, presses: int, words: list[str], begun: Callable[[], object]) -> tuple[int, str]:
    """Exit status and stderr of a command to which, as a terminal does, all of its process group hear a signal."""
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for(lambda: begun() or process.poll() is not None)
        time.sleep(1.5)
        for _ in range(presses):
            os.killpg(process.pid, number)
            time.sleep(0.1)
        _, err = process.communicate(timeout=100)
    return process.returncode, err


@pytest.mark.parametrize(("number", "presses"), [(signal.SIGINT, 3), (signal.SIGTERM, 1)])
def test_an_interrupted_training_says_where_it_stopped_and_goes_on(
    small_config: Path, number: signal.Signals, presses: int
) -> None:
    words = command("train", str(small_config), "--set", "train.epochs=3000", "--set", "decisions.folds=0")
    folder = load(small_config).folder / "training"
    status, err = interrupted(number, presses, words, lambda: list(folder.glob("*/epoch-*/checkpoint.json")))
    assert status == 130, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("cprfl: stopped after epoch "), err
    assert last.endswith(" of 3000; the same command goes on")
    (run,) = runs(load(small_config))
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.note.content"].startswith("**stopped after epoch ")


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_three_times_says_how_it_goes_on_and_leaves_no_process(
    small_config: Path, tmp_path: Path
) -> None:
    sweep = sweep_file(tmp_path / "sweep.yaml", scheduler="none", max_concurrent=1)
    words = command("tune", str(small_config), "--sweep", str(sweep), "--set", "train.epochs=3000")
    children: list[psutil.Process] = []

    def begun() -> bool:
        found = list(load(small_config).folder.glob("sweeps/*/trials/*/epoch-*"))
        if found:
            (own,) = (child for child in psutil.Process().children() if child.cmdline()[:-1] == words[:-1])
            children.extend(own.children(recursive=True))
        return bool(found)

    status, err = interrupted(signal.SIGINT, 3, words, begun)
    assert status == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "cprfl: stopped after 0 of 3 trials; the same command with --resume goes on"
    assert {run.info.status for run in runs(load(small_config))} == {"KILLED"}
    assert children
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left


def test_no_interruption_tears_a_transaction_apart_and_handlers_go_with_the_command() -> None:
    before = signal.getsignal(signal.SIGINT)
    transaction = types.ModuleType("mlflow.store.of_this_test")
    exec("def commit(work):\n    work()\n    return 'committed'", vars(transaction))
    ended: list[str] = []

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    try:
        with pytest.raises(KeyboardInterrupt), interrupting.interrupts_heard():
            ended.append(transaction.commit(press))
            time.sleep(1)
        assert ended == ["committed"]
        assert signal.getsignal(signal.SIGINT) is not before  # until the process ends
    finally:
        interrupting._first.clear()
        signal.signal(signal.SIGINT, before)
    with interrupting.interrupts_heard():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_port_that_is_taken_is_said(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(load(small_config).output_dir)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, _, err = call(monkeypatch, capsys, "ui", "--output-dir", output, "--port", port)
    assert status == 2
    assert f"--port {port}: cannot be listened on" in err


def test_the_ui_says_where_it_is_and_stops_quietly(small_config: Path) -> None:
    import urllib.request

    (port,) = free_ports(1)
    words = command("ui", "--output-dir", load(small_config).output_dir, "--port", str(port))
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def answers() -> bool:
        assert process.poll() is None
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200)
        except OSError:
            return False

    wait_for(answers)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning" in out
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


def test_a_run_that_is_there_is_offered_and_made_anew_when_asked_or_changed(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(small_config), "--set", "train.epochs=1", "--set", "decisions.folds=0"]
    status, first, _ = call(monkeypatch, capsys, *words)
    assert status == 0
    status, again, err = call(monkeypatch, capsys, *words)
    assert status == 0
    assert "registered as version 1, trained with these settings on these data; --again trains it anew" in err
    assert again == first
    assert len(runs(load(small_config))) == 1
    call(monkeypatch, capsys, *words, "--again")
    assert len(runs(load(small_config))) == 2
    call(monkeypatch, capsys, *words, "--set", "train.lr=0.01")
    named = [run.info.run_name for run in runs(load(small_config))]
    assert named == ["small · lr=0.01", "small", "small"]


def test_a_model_that_is_registered_and_not_served_is_said(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later version does not take the champion's place by itself, and a version keeps its thresholds."""
    words = ["run", str(small_config), "--set", "train.epochs=1", "--set", "train.validation=0.4"]
    _, _, err = call(monkeypatch, capsys, *words)
    assert "registered small, version 1\n" in err
    _, _, err = call(monkeypatch, capsys, *words, "--again")
    assert "registered small, version 2; the champion is still version 1, which `cprfl predict small`" in err
    other = [*words, "--set", "decisions.calibration=none"]
    status, _, err = call(monkeypatch, capsys, *other)
    assert status == 0
    assert "evaluating it by the decisions that are asked for now" in err
    assert "version 2, as it is registered, keeps its calibration and thresholds" in err
    assert len(runs(load(small_config))) == 2
    _, _, err = call(monkeypatch, capsys, *other)
    assert "evaluating" not in err
    _, _, err = call(monkeypatch, capsys, "evaluate", *other[1:])
    assert "version 2, as it is registered, keeps" in err
    _, _, err = call(monkeypatch, capsys, "evaluate", *words[1:])
    assert "keeps" not in err  # these are its own


def test_a_failed_evaluation_leaves_no_experiment_in_mlflow(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    status, _, _ = call(monkeypatch, capsys, "evaluate", str(small_config))
    assert status == 2
    open_existing_store(load(small_config).output_dir)
    assert [found.name for found in mlflow.search_experiments()] == ["Default"]


def test_a_class_that_may_be_a_slip_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cprfl.reading import _misspelt

    names = ("blue star", "red circle", "red cirlce", "class 1", "Hund", "Hnud", "cat", "act")
    labels = ((1,),) * 12 + ((0,),) * 12 + ((2,), (3,)) + ((4,),) * 7 + ((5,),) + ((6,),) * 7 + ((7,),)
    ids = tuple(map(str, range(len(labels))))
    manifest = Manifest(names, ids, ids, ("train",) * len(labels), labels)
    first, second = _misspelt(manifest)
    assert "'red cirlce' (1 image) has nearly the name of 'red circle'" in first
    assert "'Hnud' (1 image) has nearly the name of 'Hund'" in second
