"""Connecting to Ray, and what follows where it is lost."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NoReturn

import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.job_config import JobConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from cprfl.errors import ClusterError
from cprfl.progress import goes_on, say
from pipelines.background import is_left_behind, main_thread_raises, raise_in_main_thread
from pipelines.cluster.joining import check_answers, check_guarded, check_is_node, is_loopback, resolved, watch
from pipelines.cluster.local import LocalRay, on_loopback

_SPINNING = "GOMP_SPINCOUNT"
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_PATIENCE = 5.0  # seconds in which Ray lets go of this process, or is left as it is
_TOLD = 2.0  # seconds in which it is known that Ray is lost, where calls of it fail


class _Session:
    """The Ray that this process is connected to."""

    def __init__(self) -> None:
        self.local: LocalRay | None = None
        self.lost = ""
        self.loss, self.ending = threading.Event(), threading.Event()

    def on_loss(self, what: str) -> None:
        """Raise where the command waits for an answer that will not come."""
        if not self.ending.is_set():
            self.lost = what
            self.loss.set()
            raise_in_main_thread(self.error())

    def error(self) -> ClusterError:
        where = "on this machine" if self.local else f"at {os.environ.get('RAY_ADDRESS')}"
        return ClusterError(
            f"Ray {where} is lost: {self.lost}; {goes_on()} goes on with what is done"
            + (" (look for full memory or a full /dev/shm if it comes again)" if self.local else "")
        )


_session = _Session()


def connect(dashboard: bool = False) -> None:
    """Join the cluster named by ``RAY_ADDRESS``, or start Ray on this machine; nothing if already connected.

    SIGTERM is answered as before: Ray would end this process without a word. Where Ray is lost later on, `ClusterError`
    is raised in the main thread.

    Args:
        dashboard: of a Ray started here, on the loopback interface. Sweeps need it: Ray Train asks its server whether
            the controller of a stopped trial is gone, and keeps the trial's CPUs for ever if nobody answers.

    Raises:
        ClusterError: where the address does not answer or asks nobody for a token, or Ray does not start here.
    """
    global _session
    if ray.is_initialized():
        return
    disconnect()  # of one that somebody else has shut down
    _session = _Session()
    present = signal.getsignal(signal.SIGTERM)
    _set_defaults()
    address = os.environ.get("RAY_ADDRESS", "local")
    if address in ("", "local"):
        say("starting Ray")
        _start(dashboard)
    else:
        say(f"joining the Ray cluster at {address}")
        _join(address)
    atexit.register(disconnect)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, present)
        main_thread_raises()


def disconnect() -> bool:
    """Leave Ray, and end it where it was started here; nothing where that was done.

    Returns:
        Whether Ray let go of this process; if not, Python may not be able to end either.
    """
    atexit.unregister(disconnect)
    _session.ending.set()
    gone = True
    if ray.is_initialized():
        # Where Ray is lost it would wait for answers; a thread that is still inside of Ray would be left without what
        # it reads, and so would the whole process (SIGSEGV).
        gone = not _session.loss.is_set() and not is_left_behind()
        if gone:
            leaving = threading.Thread(target=ray.shutdown, daemon=True)
            leaving.start()
            leaving.join(_PATIENCE)
            gone = not leaving.is_alive()
    if _session.local is not None:
        _session.local.stop()
        _session.local = None
    return gone


def leave(status: int) -> NoReturn:
    """End this process with a status, also where Ray does not let go of it."""
    if disconnect():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def failing_with_ray() -> Iterator[None]:
    """What Ray raises in the block where its processes end, not what a task raises, is what the user can mend.

    Raises:
        ClusterError: where Ray is lost, or gave up on what it was to do.
    """
    try:
        yield
    except (RayError, TrainingFailedError) as error:
        if _session.loss.wait(_TOLD):
            raise _session.error() from None
        if isinstance(error, (RayTaskError, TrainingFailedError)):
            raise
        raise ClusterError(
            f"Ray gave up on this ({str(error).strip().splitlines()[0]}); {goes_on()} goes on with what is done"
        ) from None


def _set_defaults() -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES of CPU tasks alone
    # Ray Train takes in one report per poll of its workers, and polls every 2 s: longer than most epochs here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    # How long a training waits for other resources where a node is gone, before it says so.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    # Threads that spin at every barrier stand still where another process has the core: encoding beside decoding is
    # five times slower with OpenMP's default.
    os.environ.setdefault(_SPINNING, "1000")


def _join(address: str) -> None:
    found = resolved(address)
    check_guarded(found)
    check_answers(found)
    check_is_node(found)
    try:
        with on_loopback() if is_loopback(found) else nullcontext():
            _initialize(found, {})
    except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
        raise ClusterError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start one, "
            "give its token in RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run on this machine"
        ) from None
    looking = partial(watch, found, _session.on_loss, _session.ending)
    threading.Thread(target=looking, daemon=True).start()


def _start(dashboard: bool) -> None:
    _session.local = LocalRay(dashboard, _session.on_loss)
    try:
        with on_loopback():
            # Ray Train's cleaner of stopped trials looks for the cluster by itself, and gives up where this machine has
            # two. Workers that train together meet on the loopback interface.
            meeting = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
            _initialize(_session.local.address, {"RAY_ADDRESS": _session.local.address, **meeting})
    except BaseException:
        disconnect()
        raise


def _initialize(address: str, variables: dict[str, str]) -> None:
    ray.init(
        address=address, logging_level=logging.WARNING, log_to_driver=False, job_config=_job(),
        runtime_env={"env_vars": {_SPINNING: os.environ[_SPINNING], **variables}},
    )  # fmt: skip


def _job() -> JobConfig:
    """What Ray's dashboard calls this process: the command, without options, whose values are nobody else's."""
    words = sys.argv[1:]
    options = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    config = JobConfig()
    config.set_metadata("job_name", " ".join(["cprfl", *words[:options]])[:200])
    return config
