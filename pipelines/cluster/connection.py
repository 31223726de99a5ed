"""Connecting to Ray."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from cprfl.errors import ClusterError
from cprfl.progress import say

_SPINNING = "GOMP_SPINCOUNT"
_OBJECT_STORE = 512 * 2**20  # bytes, of a Ray started here
# Ray ends workers that were idle for 1 s where there are more than CPUs, and the next task waits for another one's
# imports: on two cores extraction lost a third of its speed to that.
_IDLE_MS = 30_000


def connect(dashboard: bool = False) -> None:
    """Join the cluster named by ``RAY_ADDRESS``, or start Ray on this machine; nothing if already connected.

    SIGTERM is answered as before: Ray would end this process without a word.

    Args:
        dashboard: of a Ray started here, on the loopback interface. Sweeps need it: Ray Train asks its server whether
            the controller of a stopped trial is gone, and keeps the trial's CPUs for ever if nobody answers.

    Raises:
        ClusterError: where the address does not answer.
    """
    if ray.is_initialized():
        return
    present = signal.getsignal(signal.SIGTERM)
    say(f"joining the Ray cluster at {os.environ['RAY_ADDRESS']}" if os.environ.get("RAY_ADDRESS") else "starting Ray")
    _connect(dashboard)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, present)


def _connect(dashboard: bool) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES of CPU tasks alone
    # Ray Train takes in one report per poll of its workers, and polls every 2 s: longer than most epochs here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    # How long a training waits for other resources where a node is gone, before it says so.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    # Threads that spin at every barrier stand still where another process has the core: encoding beside decoding is
    # five times slower with OpenMP's default.
    os.environ.setdefault(_SPINNING, "1000")
    workers = {_SPINNING: os.environ[_SPINNING]}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(
                address=address, logging_level=logging.WARNING, log_to_driver=False,
                runtime_env={"env_vars": workers}, job_config=_job(),
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
            raise ClusterError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start one, "
                "give its token in RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run on this machine"
            ) from None
        return
    # Training moves no data through the object store, extraction a few shards; the default takes 30 % of the memory.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Ray Train's cleaner of stopped trials looks for the cluster by itself, and gives up where this machine has two.
    with _chosen_port() as port:
        workers["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
        _start(dashboard, workers)


@contextmanager
def _chosen_port() -> Iterator[int]:
    """A free port, which a Ray that is started in the block listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    try:
        yield port
    finally:
        del os.environ["RAY_GCS_SERVER_PORT"]


def _start(dashboard: bool, workers: dict[str, str]) -> None:
    ray.init(
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        object_store_memory=_OBJECT_STORE,
        log_to_driver=False,
        runtime_env={"env_vars": workers},
        job_config=_job(),
        _system_config={"idle_worker_killing_time_threshold_ms": _IDLE_MS},
    )


def _job() -> JobConfig:
    """What Ray's dashboard calls this process: the command that was given."""
    config = JobConfig()
    config.set_metadata("job_name", " ".join(["cprfl", *sys.argv[1:]])[:200])
    return config
