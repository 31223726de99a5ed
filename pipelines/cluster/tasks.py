"""Independent pieces of work on the cluster, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from pipelines.cluster.connection import connect, failing_with_ray
from pipelines.cluster.mistakes import mistakes_raised
from pipelines.cluster.resources import cpus_of_tasks
from pipelines.cluster.shared import check_shared

_LOOK = 0.5  # seconds that are waited at a time: signals, and that Ray is lost, are heard in between


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
    each = cpus_of_tasks(len(arguments), gpu)
    # A process serves one call: what it held is not counted as the next one's memory, nor kept.
    remote: Any = ray.remote(num_cpus=each, num_gpus=1 if gpu else 0, max_retries=0, max_calls=1)(_call)
    remote = remote.options(name=work.__name__)
    pending = {remote.remote(work, argument): number for number, argument in enumerate(arguments)}
    while pending:
        with failing_with_ray():
            ended, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK)
        if not ended:
            continue
        (done,) = ended
        number = pending.pop(done)
        yield number, _outcome(done)


def _call(work: Callable[[Any], Any], argument: Any) -> Any:
    with mistakes_raised():
        return work(argument)


def has_gpus() -> bool:
    """Whether the cluster has any."""
    connect()
    return bool(ray.cluster_resources().get("GPU"))


def _outcome(done: Any) -> Any | Exception:
    try:
        with failing_with_ray():
            return ray.get(done)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
