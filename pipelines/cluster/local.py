"""A Ray of our own on this machine: on the loopback interface, behind a token, and gone when we are."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from cprfl.environment import check_handles, check_threads
from cprfl.errors import ClusterError
from cprfl.progress import say

_SECONDS = 300.0  # in which Ray has started, or does not start at all: ten, but for a very busy machine
_PATIENCE = 20.0  # seconds in which its processes and files are gone
_LOOK = 0.5  # seconds that are waited at a time, so that Ctrl-C is raised
_PREFIX = "cprfl-"
# A UNIX socket's path has 107 characters (macOS: 103); Ray's own part of it is up to 65, our folder's 18.
_LONGEST = (107 if sys.platform == "linux" else 103) - 65 - 18
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_ROOM = 50 * 2**20  # bytes of logs and sockets: Ray would wait for a process that cannot write them
_HANDLES = 256  # files, pipes and sockets of each of its processes
_THREADS = 300  # of all of them, about
_MEND = "set RAY_TMPDIR to a folder of this machine with a short path that you can write to"


class LocalRay:
    """A Ray that was started here.

    Attributes:
        address: host and port of its GCS.
    """

    def __init__(self, dashboard: bool, on_loss: Callable[[str], None]) -> None:
        """Start it.

        Args:
            dashboard: whether its dashboard runs.
            on_loss: called, in another thread, with what became of it where it ends before it is to.

        Raises:
            ClusterError: where it does not start.
            MachineError: where it would wait for what this user may not have.
        """
        check_handles(_HANDLES, "Ray")
        check_threads(_THREADS, "Ray")
        self._on_loss, self._stopping = on_loss, False
        self._news: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.folder, lock = _new_folder()
        self._before = {name: os.environ.get(name) for name in _AUTHENTICATION}
        try:
            own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_write_token(self.folder))}
            self._guardian = self._start(dashboard, own, lock)
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ClusterError(f"Ray does not start in {self.folder.parent}: {error.strerror}; {_MEND}") from None
        finally:
            os.close(lock)  # the guardian has it
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.address = self._wait_for_start()
        except BaseException:
            self.stop()
            raise
        _set_environment({**own, "RAY_AUTH_TOKEN": None})

    def _start(self, dashboard: bool, own: dict[str, str], lock: int) -> subprocess.Popen[bytes]:
        here = Path(__file__).parent
        head = [sys.executable, "-P", str(here / "head.py"), str(self.folder), "dashboard" if dashboard else "none"]
        # The loopback interface is what Ray takes where it is not to be a cluster; the variable is named for systems
        # on which that is its default.
        own = {**own, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
        hidden = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        with (self.folder / "guardian.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", str(here / "guardian.py"), str(self.folder), *head],
                env=environment | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, pass_fds=(lock,),
            )  # fmt: skip

    def _listen(self) -> None:
        """Hand on what the guardian tells; its end, if nobody asked for it, is news too."""
        assert self._guardian.stdout is not None
        started, told = False, False
        for line in self._guardian.stdout:
            news = json.loads(line)
            if not started:
                self._news.put(news)
                started = "address" in news
            elif not self._stopping:
                told = True
                self._on_loss(news["lost"])
        if not started:
            self._news.put({"failed": "the process that starts it has ended"})
        elif not told and not self._stopping:
            self._on_loss("the process that watches it has ended")

    def _wait_for_start(self) -> str:
        for _ in range(int(_SECONDS / _LOOK)):
            with contextlib.suppress(Empty):  # then it is waited again
                news = self._news.get(timeout=_LOOK)
                if "failed" in news:
                    raise ClusterError(
                        f"Ray does not start on this machine: {news['failed']}; look for full memory, a full "
                        f"{self.folder.parent} (RAY_TMPDIR names another folder) or a machine that is too busy"
                    )
                return str(news["address"])
        raise ClusterError(
            f"Ray does not start on this machine within {_SECONDS:.0f} s; it needs about 2 GB of memory, and "
            "resources.num_workers: 0 trains without it"
        )

    def stop(self) -> None:
        """End all its processes and remove its folder; nothing where that was done."""
        if self._stopping:
            return
        self._stopping = True
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        try:
            self._guardian.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        _set_environment(self._before)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let this process, in the block, join what listens on the loopback interface: Ray would ask at its own address."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _set_environment(values: dict[str, str | None]) -> None:
    """Change variables by which Ray authenticates, and have it read them: it keeps what it read first."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _write_token(folder: Path) -> Path:
    path = folder / "token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _new_folder() -> tuple[Path, int]:
    """A folder for this session that only we can enter, and a lock that stands as long as the session does."""
    parent = _parent()
    try:
        if (free := shutil.disk_usage(parent).free) < _ROOM:
            raise ClusterError(f"Ray's files have no room: {parent} has {free / 2**20:.0f} MB free; {_MEND}")
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except OSError as error:
        raise ClusterError(f"Ray has no place for its files: {error.strerror}: {error.filename}; {_MEND}") from None
    _remove_abandoned(folder.parent)
    lock = os.open(folder / "lock.part", os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "lock.part").rename(folder / "lock")
    return folder, lock


def _parent() -> str:
    """Where the folder is: RAY_TMPDIR, the system's temporary folder, or /tmp where that has too long a path."""
    if chosen := os.environ.get("RAY_TMPDIR"):
        chosen = str(Path(chosen).absolute())
        if len(chosen) > _LONGEST:
            raise ClusterError(f"RAY_TMPDIR={chosen}: longer than the {_LONGEST} characters of Ray's sockets; {_MEND}")
        return chosen
    usual = tempfile.gettempdir()
    if len(usual) <= _LONGEST:
        return usual
    say(f"{usual} has too long a path for Ray's sockets; its files are in /tmp")
    return "/tmp"


def _remove_abandoned(parent: Path) -> None:
    """Remove folders of sessions of which nobody is left, such as of a machine that lost its power."""
    for lock in parent.glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(OSError):  # it works, or was removed just now
            if lock.parent.lstat().st_uid != os.getuid():
                continue
            file = os.open(lock, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
            finally:
                os.close(file)
