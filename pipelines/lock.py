"""One command at a time works on an experiment: the second waits, and says for whom."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from cprfl.data.locks import Lock, NoLocksError, exclusive, holds, lock_shared, try_lock
from cprfl.data.temporary import remove_abandoned, remove_asides
from cprfl.experiment import Experiment

P = ParamSpec("P")
Result = TypeVar("Result")
LOCKS = ".locks"
"""Folder below ``output_dir``: a file for each experiment."""

_CACHE = ".cache.lock"
_STORES = ("features",)  # below the cache, each with a lock of its own


@contextmanager
def alone(experiment: Experiment, what: str) -> Iterator[None]:
    """Be the only one who works on an experiment while the block runs.

    What a killed command was writing is removed first.

    Args:
        experiment: in whichever place; all places of a name are one experiment.
        what: is done, for whoever waits.
    """
    with exclusive(_file(experiment), what) as outermost:
        if not outermost:
            yield
            return
        remove_abandoned()
        remove_asides(experiment.placed("").folder)
        cache = _clean_cache(_file(experiment).with_name(_CACHE), experiment.cache_dir)
        try:
            yield
        finally:
            if cache is not None:
                cache.release()


def is_alone(experiment: Experiment) -> bool:
    """Whether this thread is in an `alone` block for an experiment."""
    return holds(_file(experiment))


def one_at_a_time(stage: Callable[Concatenate[Experiment, P], Result]) -> Callable[Concatenate[Experiment, P], Result]:
    """Have a stage, whose first argument is the experiment, work `alone` on it."""

    @functools.wraps(stage)
    def locked(experiment: Experiment, /, *arguments: P.args, **named: P.kwargs) -> Result:
        with alone(experiment, stage.__name__.removesuffix("_stage").replace("_", "-")):
            return stage(experiment, *arguments, **named)

    return locked


def _file(experiment: Experiment) -> Path:
    return Path(experiment.output_dir) / LOCKS / f"{experiment.name}.lock"


def _clean_cache(path: Path, cache: Path) -> Lock | None:
    """Remove what killed commands were writing into the cache that all experiments share, unless others use it now.

    Returns:
        A share of its lock, which is in the file ``path``; none where the storage knows no locks.
    """
    try:
        lock = try_lock(path)
    except NoLocksError:
        return None
    if lock is None:
        return lock_shared(path)
    remove_asides(cache, but=_STORES)
    lock.share()
    return lock
