"""Commands that train or encode on a Ray of their own, and the processes and files of that Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from tests.helpers import command, command_line

Found = TypeVar("Found")
_PATIENCE = 240.0  # seconds for what takes ten where nothing else runs


class RayCommand:
    """A command in a process group of its own.

    Attributes:
        process: it.
        folder: where its Ray keeps its files is a folder of this one.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self.folder = process, folder

    def tree(self) -> list[psutil.Process]:
        """All processes that it has started, and what those have."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, words: str) -> psutil.Process:
        """The first of them whose command line has these words, once there is one."""
        return self.wait(lambda: next((found for found in self.tree() if words in command_line(found)), None))

    def wait(self, look: Callable[[], Found | None]) -> Found:
        """What is looked for, once it is there."""
        deadline = time.monotonic() + _PATIENCE
        while not (found := look()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    def ended(self) -> tuple[int, str]:
        """Exit status and stderr, once it has ended."""
        _, err = self.process.communicate(timeout=_PATIENCE)
        return self.process.returncode, err

    def leftovers(self) -> list[str]:
        """Files of Ray and processes that work in them, once those had time to end."""
        deadline = time.monotonic() + 30
        while (found := self._present()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _present(self) -> list[str]:
        own = str(self.folder)
        processes = [found for found in psutil.process_iter() if found.pid != self.process.pid]
        return [str(path) for path in self.folder.iterdir()] + [
            line for line in map(command_line, processes) if own in line
        ]


@contextmanager
def running(words: list[str], **environment: str) -> Iterator[RayCommand]:
    """A command on a Ray whose files are in a new folder; whatever happens, nothing of it is left after the block."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            command(*words), env={**os.environ, "RAY_TMPDIR": folder, **environment}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            yield RayCommand(process, Path(folder))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
