"""What is the machine's fault and not the program's: full disks, rights, too few handles, too little memory.

Libraries tell of it in ways of their own. Here all of them become one error with what happened, where, and the mend;
what is not known to be the machine's fault stays what it is.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from cprfl.errors import MachineError, UserError

_GOES_ON = "the same command then goes on where it stopped"
_ROOM = f"make room, or write elsewhere (output_dir, feature_dir, TMPDIR); {_GOES_ON}"
_RIGHT = "have its owner give you the right, or name a folder of your own (output_dir, feature_dir, HOME, TMPDIR)"
_NAME = "is it mistyped, or was it removed meanwhile? correct it"
_MENDS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: f"let files grow larger (`ulimit -f unlimited`); {_GOES_ON}",
    errno.EROFS: _RIGHT,
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
    errno.EMFILE: f"let a process open more files (`ulimit -n 4096`); {_GOES_ON}",
    errno.ENFILE: f"have this machine's administrator raise fs.file-max; {_GOES_ON}",
    errno.ENOMEM: f"give it more memory, or make the batches smaller (train.batch_size); {_GOES_ON}",
    errno.EAGAIN: f"let this user start more processes and threads (`ulimit -u`); {_GOES_ON}",
    errno.ENOENT: _NAME,
    errno.ENOTDIR: "a part of the path is a file; name a folder",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "it is a file; name a folder, or move it away",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its symbolic links lead in a circle; name what they should lead to",
    errno.EIO: f"the disk or the network share fails; mend it; {_GOES_ON}",
    errno.ESTALE: f"the network share was lost; mount it again; {_GOES_ON}",
}
# How libraries say it whose errors have no number.
_TEXTS = (
    (re.compile(r"PytorchStreamWriter failed|iostream error|unexpected pos \d+"), errno.ENOSPC),
    (re.compile(r"can't start new thread|Resource temporarily unavailable"), errno.EAGAIN),
    (re.compile(r"can't allocate memory|out of memory|failed to map segment|Cannot allocate memory"), errno.ENOMEM),
    (re.compile(r"Too many open files"), errno.EMFILE),
)
_NUMBER = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+)|Detail: \[errno (\d+)\]")  # of Rust, its panics, Arrow
_OF_RUST = ("SafetensorError", "PanicException")  # have no other base, and the libraries are heavy to import
_STRERROR = re.compile(r"failed with strerror: (.+)$", re.MULTILINE)  # of PyTorch's files
_THREADS = 32 + 2 * (os.cpu_count() or 1)  # of one process: each library has some for each core
_ADDRESS_SPACE = 4 << 30  # bytes; what PyTorch, MLflow and the drawing of a report map is 3.7 GB


def machine_fault(error: BaseException) -> MachineError | None:
    """The error for the user, where the machine and not the program is to blame; none where it is not known to be."""
    return next((found for cause in _causes(error) if (found := _fault(cause)) is not None), None)


def mendable(error: BaseException) -> UserError | None:
    """The error for the user where the user, or whoever keeps the machine, can mend it; none where it is ours."""
    return error if isinstance(error, UserError) else machine_fault(error)


def mend_of(number: int) -> str:
    """What mends the system's error of this number (`errno`); empty where it is none of the machine's faults."""
    return _MENDS.get(number, "")


def check_memory() -> None:
    """Make sure that this process may map what the libraries need: some of them hang where they may not.

    Raises:
        MachineError: where it may not.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY and allowed < _ADDRESS_SPACE:
        raise MachineError(
            f"a process may take {allowed / 1e9:.1f} GB of address space here (`ulimit -v`), and PyTorch with its "
            f"libraries maps {_ADDRESS_SPACE / 1e9:.1f} GB; raise it, or lift it: `ulimit -v unlimited`"
        )


def check_threads(needed: int = _THREADS, what: str = "PyTorch with its libraries") -> None:
    """Make sure that so many more threads may be started: some libraries abort, and Ray waits, where they may not.

    Args:
        needed: threads, of all processes of this user together.
        what: needs them.

    Raises:
        MachineError: where they may not.
    """
    enough = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(needed):
            thread = threading.Thread(target=enough.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:  # so Python says it
        check_memory()  # a thread's stack takes some, too
        raise MachineError(
            f"only {len(started)} more threads can be started here, and {what} needs {needed}; let this user start "
            "more processes and threads (`ulimit -u`, or the container's limit of them)"
        ) from None
    finally:
        enough.set()
        for thread in started:
            thread.join()


def check_handles(needed: int, what: str) -> None:
    """Make sure that a process may open so many files, and let it where only the soft limit forbids it.

    Args:
        needed: files, pipes and sockets at once.
        what: needs them.

    Raises:
        MachineError: where it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        raise MachineError(
            f"a process may open {hard} files here, and {what} needs {needed}; let it open more (`ulimit -n 4096`)"
        )
    if resource.RLIM_INFINITY != soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_folder(folder: Path) -> None:
    """Make sure that a folder, or the nearest above it that exists, can be written to; nothing is left there.

    Raises:
        OSError: where it cannot.
    """
    while not folder.exists() and not folder.is_symlink():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)  # instead of that of the file
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from; Ray and SQLAlchemy keep them in attributes."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, getattr(each, "cause", None), getattr(each, "orig", None)]


def _fault(error: BaseException) -> MachineError | None:
    if isinstance(error, MemoryError):
        return _error(errno.ENOMEM)
    if isinstance(error, OSError):
        number = error.errno if error.errno in _MENDS else _number(str(error))
        return None if number is None else _error(number, _where(error), _said(error))
    # An ImportError is a library that cannot be mapped.
    if isinstance(error, RuntimeError | ImportError) or type(error).__name__ in _OF_RUST:
        number = _number(str(error))
        return None if number is None else _error(number)
    return None


def _number(text: str) -> int | None:
    """The system's number for what a text tells of, if it is one of those that have a mend."""
    if found := _NUMBER.search(text):
        number = int(found[found.lastindex or 0])
        return number if number in _MENDS else None
    if found := _STRERROR.search(text):
        return next((number for number in _MENDS if os.strerror(number) == found[1].strip()), None)
    return next((number for pattern, number in _TEXTS if pattern.search(text)), None)


def _where(error: OSError) -> str:
    return ", ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes))


def _said(error: OSError) -> str:
    """What a library says beyond the system's words, where no file is named."""
    text = str(error.strerror or error).splitlines()[0]
    known = error.errno is not None and text.startswith(os.strerror(error.errno))
    return "" if known or error.filename is not None else text


def _error(number: int, where: str = "", said: str = "") -> MachineError:
    mend = _MENDS[number]
    if number == errno.ENOENT and said.startswith("No usable temporary directory"):
        mend = "set TMPDIR to a folder that you may write to"
    what = said or os.strerror(number)
    if number == errno.EMFILE:
        what = f"{what} ({resource.getrlimit(resource.RLIMIT_NOFILE)[0]} are allowed)"
    return MachineError(f"{where}: {what}; {mend}" if where else f"{what}; {mend}")
