"""The model that is served, and how it keeps up with what its name stands for."""

from __future__ import annotations

import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cprfl.errors import UserError
from cprfl.inference.predictor import Predictor
from cprfl.training.checkpoint import load_info
from pipelines.tracking.models import fetch_model, resolve


@dataclass(frozen=True)
class Served:
    """A model that is loaded.

    Attributes:
        name: of the experiment.
        version: of the registered model, or the key of the training.
        predictor: scores with it.
    """

    name: str
    version: str
    predictor: Predictor


class Source(Protocol):
    """Where a model comes from."""

    def version(self) -> str:
        """What is there at this moment."""

    def load(self, version: str) -> Served:
        """Load it."""


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint's folder; another training in it is another version."""

    folder: Path

    def version(self) -> str:
        """See `Source`."""
        return load_info(self.folder).training_key

    def load(self, version: str) -> Served:
        """See `Source`."""
        return Served(str(load_info(self.folder).experiment["name"]), version, Predictor.load(self.folder))


@dataclass(frozen=True)
class RegisteredSource:
    """A registered model by a ``models:/`` name, in the store that MLflow points at."""

    model: str

    def version(self) -> str:
        """See `Source`."""
        return resolve(self.model)[1]

    def load(self, version: str) -> Served:
        """See `Source`; its files are removed when the weights are in memory."""
        name = resolve(self.model)[0]
        with tempfile.TemporaryDirectory(prefix="cprfl-serve-") as folder:
            files = fetch_model(f"models:/{name}/{version}", Path(folder))
            return Served(name, version, Predictor.load(files.checkpoint, files.encoder_weights))


class Champion:
    """The model that answers now; another version takes its place when it is loaded.

    Args:
        source: where it comes from.

    Attributes:
        served: the present one. It changes by one assignment, so whoever has taken it goes on with it.
        problem: why the last look found no version, or did not load it; empty where all is well.

    Raises:
        UserError: where the first version cannot be loaded.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.problem = ""
        self.served = source.load(source.version())

    def look(self) -> bool:
        """Load what the name stands for now, if that is another version; the present one stays where that fails.

        Returns:
            Whether another version answers from now on.
        """
        try:
            version = self._source.version()
            if version == self.served.version:
                self._say("")
                return False
            served = self._source.load(version)
        except (UserError, OSError) as error:
            self._say(str(error))
            return False
        except Exception as error:  # whatever a damaged version raises, the present one answers
            self._say(f"{type(error).__name__}: {error}")
            return False
        before, self.served = self.served.version, served
        self._say("")
        print(f"version {served.version} of {served.name} answers now (before: {before})", file=sys.stderr, flush=True)
        return True

    def keep_up(self, every: float) -> threading.Event:
        """Look again every so many seconds, in a thread, until the event that is returned is set."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(every):
                self.look()

        threading.Thread(target=work, name="champion", daemon=True).start()
        return ended

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            print(f"version {self.served.version} goes on answering: {problem}", file=sys.stderr, flush=True)
        self.problem = problem
