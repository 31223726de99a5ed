"""Limits of a process: files, threads and memory. They are named with the mend, before a library hangs or aborts."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from cprfl.environment import check_handles, check_memory, check_threads, machine_fault
from cprfl.errors import MachineError


def test_few_handles_are_named() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    files = []
    try:
        with pytest.raises(OSError) as raised:
            for _ in range(lowest):
                files.append(Path(os.devnull).open())  # noqa: SIM115
        text = str(machine_fault(raised.value))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for file in files:
            file.close()
    assert f"({lowest} are allowed)" in text
    assert "ulimit -n" in text


def test_too_little_address_space_is_said_before_a_library_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (900_000 * 1024, resource.RLIM_INFINITY))
    with pytest.raises(MachineError, match="0.9 GB of address space .*ulimit -v unlimited"):
        check_memory()


def test_too_few_threads_are_said_before_a_library_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    check_threads()
    assert threading.active_count() == before
    start = threading.Thread.start

    def few(thread: threading.Thread) -> None:
        if threading.active_count() >= before + 5:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(MachineError, match="only 5 more threads .*ulimit -u"):
        check_threads()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("limits", "becomes"),
    [((64, 64), None), ((64, 4096), 512), ((64, resource.RLIM_INFINITY), 512), ((512, 512), 512),
     ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), resource.RLIM_INFINITY)],
)  # fmt: skip
def test_handles_that_a_library_needs_are_taken_or_asked_for(
    limits: tuple[int, int], becomes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda _: current[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: current.append(wanted))
    if becomes is None:
        with pytest.raises(MachineError, match=r"may open 64 files here, and Ray needs 512; .*ulimit -n"):
            check_handles(512, "Ray")
        return
    check_handles(512, "Ray")
    assert current[-1] == (becomes, limits[1])
