"""Commands of `cprfl` in processes of their own that die of SIGKILL at a chosen moment.

Run as a program it imports everything once and forks for each command, which saves seven seconds of imports each time.
Nothing but imports happens before the fork, so there is no thread that the child would lack, but for those in which
allocators give memory back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
_WRITES = os.O_WRONLY | os.O_RDWR
# Functions by whose names moments are told apart, with the module in which they are looked up.
_PHASES = {
    "register": ("pipelines.tracking.registry", "_log_model"),
    "promote": ("pipelines.tracking.registry", "promote"),
    "report": ("pipelines.stages.run", "write_report"),
    "adopt": ("pipelines.retraining.retrain", "adopt"),
    "clean up": ("cprfl.recipe", "remove_resumable"),
}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: as `subprocess` gives it: negative where a signal ended it.
        moments: at which it changed something, each with the phase that it was in; of a killed one, until then.
        output: of both streams.
    """

    status: int
    moments: list[str]
    output: str


class Kitchen:
    """A process that has imported everything and runs commands in forks of it."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self.folder = process, folder

    def run(self, *words: str, kill_at: tuple[str, int] | None = None) -> Ended:
        """Run a command to its end, or until a phase's moment of this number, counted from 0."""
        log, moments = self.folder / "output.txt", self.folder / "moments.txt"
        asked = {"words": words, "kill_at": kill_at, "log": str(log), "moments": str(moments)}
        stdin, stdout = _pipe(self.process.stdin), _pipe(self.process.stdout)
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, "the process that forks has died"
        return Ended(os.waitstatus_to_exitcode(int(answer)), moments.read_text().splitlines(), log.read_text())


@contextmanager
def kitchen(folder: Path) -> Iterator[Kitchen]:
    """Run commands in forks while the block runs.

    Args:
        folder: for logs; its folder ``tmp`` is where the commands keep temporary files.
    """
    (folder / "tmp").mkdir(parents=True)
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killing"], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Kitchen(process, folder)
    finally:
        _pipe(process.stdin).close()
        process.wait()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


class _Moments:
    """Counts the moments of this process at which it changes something, and ends it at one of them."""

    def __init__(self, kill_at: list[Any] | None, record: Path) -> None:
        # Counted by phase: how many moments others have before differs by a few from run to run.
        self.kill_at, self.counts = kill_at, Counter[str]()
        self.process, self.phases = os.getpid(), ["other"]
        self.record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.places = (os.environ["TMPDIR"], *filter(None, [os.environ.get("KILLING_PLACE")]))

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: files that are opened to be written, renamed or removed."""
        writes = event == "open" and bool((arguments[2] or 0) & _WRITES)
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            self.passed(f"{event} {arguments[0]}")

    def passed(self, what: str) -> None:
        """One more."""
        if os.getpid() != self.process:
            return
        phase = self.phases[-1]
        if [phase, self.counts[phase]] == self.kill_at:
            os.kill(self.process, signal.SIGKILL)
        self.counts[phase] += 1
        os.write(self.record, f"{phase}: {what}\n".encode(errors="replace"))

    def mark(self, phase: str, module: Any, name: str) -> None:
        """Have moments in a function bear the name of a phase."""
        function = getattr(module, name)

        @wraps(function)
        def marked(*arguments: Any, **named: Any) -> Any:
            self.phases.append(phase)
            try:
                return function(*arguments, **named)
            finally:
                self.phases.pop()

        setattr(module, name, marked)


def _child(asked: dict[str, Any]) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from pipelines.cli.app import main

    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    moments = _Moments(asked["kill_at"], Path(asked["moments"]))
    for phase, (module, name) in _PHASES.items():
        moments.mark(phase, sys.modules[module], name)
    event.listen(Engine, "commit", lambda _: moments.passed("commit"))
    sys.addaudithook(moments.heard)
    sys.argv = ["cprfl", *asked["words"]]
    main()


def _serve() -> None:
    import mlflow.pyfunc
    import torch  # noqa: F401

    import pipelines.retraining.retrain
    import pipelines.stages.run
    import pipelines.sweeps.tune  # noqa: F401

    mlflow.pyfunc  # noqa: B018  (looked up, which imports it)
    assert threading.active_count() == 1
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _child(json.loads(line))
                status = 0
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    _serve()
