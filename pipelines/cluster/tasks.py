"""Independent pieces of work on the cluster, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipelines.cluster.connection import connect
from pipelines.cluster.shared import check_shared


def run_tasks(
    work: Callable[[Any], Any], arguments: Sequence[Any], folder: Path, gpu: bool
) -> Iterator[tuple[int, Any | Exception]]:
    """Call ``work`` with each of the arguments, as many at a time as the cluster has CPUs, or with ``gpu`` GPUs.

    Args:
        work: a function of one argument, which may be pickled.
        arguments: of the calls.
        folder: that all nodes must share.
        gpu: whether a call needs a GPU.

    Yields:
        Number and result of a call, in the order in which they end; the exception of one that failed.
    """
    connect()
    check_shared(folder)
    cpus = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    each = max(1, cpus // max(len(arguments), 1))
    # A process serves one call: what it held is not counted as the next one's memory, nor kept.
    remote: Any = ray.remote(num_cpus=each, num_gpus=1 if gpu else 0, max_retries=0, max_calls=1)(work)
    pending = {remote.remote(argument): number for number, argument in enumerate(arguments)}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        number = pending.pop(done)
        try:
            yield number, ray.get(done)
        except RayTaskError as error:
            yield number, error.cause if isinstance(error.cause, Exception) else error
        except RayError as error:  # its process died
            yield number, error


def has_gpus() -> bool:
    """Whether the cluster has any."""
    connect()
    return bool(ray.cluster_resources().get("GPU"))
