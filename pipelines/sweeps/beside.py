"""Ray Tune in a thread beside this one, where Ctrl-C and the loss of Ray are heard, and what it tells until then."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray import tune as ray_tune

from pipelines.background import in_thread
from pipelines.cluster.connection import failing_with_ray

P = ParamSpec("P")
Self = TypeVar("Self", bound="TuneBeside")
_PATIENCE = 2.0  # seconds in which Tune's thread ends where Ray answers; it takes a step in 0.1


class TuneBeside(ray_tune.Callback):
    """Runs Tune in a thread, which must not go on telling when this one has left the sweep.

    While Ray ends, trials die by no fault of theirs. What a callback raises ends the sweep: Tune would take it for a
    failure of the trial.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left, self.out = threading.Event(), threading.Event()
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune would pickle this, and what it saves is never read."""
        return {}

    def run(self, fit: Callable[[], object]) -> None:
        """Call ``fit``, in which Tune runs, in its thread.

        Raises:
            ClusterError: where Ray is lost.
            Exception: what a callback raised.
        """
        try:
            in_thread(functools.partial(self._fit, fit))
        except BaseException:
            with self.lock:
                self.left.set()
            self.out.wait(_PATIENCE)  # or it would ask for Ray again, which is then started anew
            raise
        self._check()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End Tune's thread where nobody waits for it."""
        self._check()
        if self.left.is_set():
            raise SystemExit  # which Tune does not answer by stopping trials one by one

    def _fit(self, fit: Callable[[], object]) -> None:
        try:
            with failing_with_ray():
                fit()
        finally:
            self.out.set()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure


def heard(callback: Callable[Concatenate[Self, P], None]) -> Callable[Concatenate[Self, P], None]:
    """Have a callback of `TuneBeside` do nothing once the sweep is left, and its failure end the sweep."""

    @functools.wraps(callback)
    def called(self: Self, /, *arguments: P.args, **named: P.kwargs) -> None:
        with self.lock:
            if self.left.is_set() or self.failure is not None:
                return
            try:
                callback(self, *arguments, **named)
            except Exception as error:  # whatever it is, it is not the trial's
                self.failure = error

    return called
