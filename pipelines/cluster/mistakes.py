"""What the user, or whoever keeps a machine, can mend: from Ray's workers to the command, without another try.

Ray starts anew what failed, and drops what an exception was raised from. A worker cannot write down why it ends, since
its disk may be what is full: so it is said where it happened, and travels as an exception.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import UserCallback

from cprfl.environment import mendable
from cprfl.errors import UserError


@contextmanager
def mistakes_raised() -> Iterator[None]:
    """In a worker: raise what can be mended as the `UserError` that says so, where it happened.

    Raises:
        UserError: in place of a fault of this machine, which it names.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever a library tells of a machine's fault with; anything else goes on its way
        fault = mendable(error)
        if fault is None:
            raise
        raise type(fault)(f"on {socket.gethostname()}: {fault}") from error


class NoOtherTry(UserCallback):
    """Ends a training on Ray Train at once where a worker raised what the user can mend: it would only come again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Fail the controller with it, which Ray does not start anew.

        Raises:
            UserError: of the first worker that raised one.
        """
        for rank in sorted(worker_exceptions):
            if isinstance(error := worker_exceptions[rank], UserError):
                raise error
