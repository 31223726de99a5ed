"""What the user, or whoever keeps the machine, can mend: looked for before the work, and told in a few lines."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cprfl.experiment import Experiment

MISTAKE = 2


@contextmanager
def mistakes_told() -> Iterator[None]:
    """End the command with status 2, without a traceback, where the block raises what is not our fault.

    With ``--verbose`` the traceback of the machine's faults is shown too.
    """
    from cprfl.environment import check_threads, mendable
    from cprfl.progress import is_verbose

    try:
        check_threads()
        yield
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        told = mendable(error)
        if told is None:
            raise
        if told is not error and is_verbose():
            traceback.print_exc()
        _end(told)


def check_places(experiment: Experiment) -> None:
    """Make sure, before the work, that results and features can be written.

    Raises:
        OSError: where they cannot.
    """
    from cprfl.data.filesystems import is_remote, local_path
    from cprfl.environment import check_folder

    for place in (experiment.output_dir, experiment.feature_root):
        if not is_remote(place):
            check_folder(local_path(place))


def flush() -> None:
    """Write what was printed: Python's own attempt, after everything, could not be told of.

    Raises:
        MachineError: where it cannot be written.
    """
    from cprfl.errors import MachineError

    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or that attempt fails all the same
        raise MachineError(f"what is printed cannot be written ({error.strerror}); print it elsewhere") from None


def _end(error: Exception) -> None:
    from cprfl.plain import printable

    print(printable(f"cprfl: {error}"), file=sys.stderr, flush=True)
    sys.exit(MISTAKE)
