"""Keeps the Ray of one command: starts it, watches it, and leaves nothing of it, however the command ends.

A process of its own, which knows neither Ray nor us (it stays small), in a session of its own: what is sent to the
command's process group reaches Ray's processes no more than it reaches this one. It tells the command in lines of JSON
what became of Ray, and ends with the command: when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import psutil

_SECONDS = 0.2  # between two looks
_PATIENCE = 15.0  # seconds in which killed processes are gone
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes whose parent ends become this one's children


def main() -> None:
    """Start Ray in the folder (first argument) by the command (the others), watch it, and clean up."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _not_heard)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    parent = os.getppid()
    try:
        with (folder / "start.log").open("wb") as log:
            starting = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )  # fmt: skip
        with contextlib.suppress(BrokenPipeError):  # the command is gone: there is nobody to tell
            _watch(folder, starting, parent)
    finally:
        _end_all(starting.pid)
        shutil.rmtree(folder, ignore_errors=True)


def _not_heard(number: int, frame: FrameType | None) -> None:
    """The command hears it, and ends this process; a handler, unlike SIG_IGN, is not inherited."""


def _watch(folder: Path, starting: subprocess.Popen[bytes], parent: int) -> None:
    """Tell that Ray stands, or why it does not; then wait until it falls, or the command ends."""
    while (status := starting.poll()) is None:
        if _released(parent):
            return
    record = folder / "started.json"
    if status != 0 or not record.exists():
        _tell(failed=_last_line(folder / "start.log") or f"exit status {status}")
        return
    started = json.loads(record.read_text())
    try:
        watched = {name: psutil.Process(pid) for name, pid in started["processes"].items()}
    except psutil.NoSuchProcess:
        _tell(failed="it ended at once")
        return
    _tell(address=started["address"])
    while not _released(parent):
        for name, process in watched.items():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                _tell(lost=f"{name} {_ending(process)}")
                return


def _released(parent: int) -> bool:
    """Whether the command has ended, or closed the pipe; waits a little."""
    readable, _, _ = select.select([sys.stdin], [], [], _SECONDS)
    return bool(readable) or os.getppid() != parent


def _ending(process: psutil.Process) -> str:
    code = process.wait(0) if process.is_running() else None
    if code is None or code >= 0:
        return "ended" if code is None else f"ended with status {code}"
    return f"was ended by {signal.Signals(-code).name}"


def _tell(**news: str) -> None:
    print(json.dumps(news), flush=True)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _end_all(group: int) -> None:
    """Kill everything that was started here, and what that has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended; macOS refuses a group of zombies
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


if __name__ == "__main__":
    main()
