"""Where a training runs, and what it takes of a Ray cluster."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from cprfl.config import Config

FEW_IMAGES = 5000  # that are encoded before Ray's start-up has paid off, on two cores (docs/performance.md)


def here(num_workers: int | None) -> bool:
    """Whether so many workers are this process: 0, or nothing said where no cluster is named."""
    return num_workers == 0 or (num_workers is None and not os.environ.get("RAY_ADDRESS"))


class ResourcesConfig(Config):
    """Where a training runs, and what it takes of a Ray cluster.

    ``num_workers``: 0 trains in this process, without Ray; unless given it is 0 where no cluster is named
    (``RAY_ADDRESS``), and 1 on one. ``cpus_per_worker``: unless given, as many as each of them can have, every worker
    on one node. ``gpu``: one per worker, if the cluster has any (``auto``), always or never. ``max_failures``: times
    that a training whose worker or node died goes on from its last checkpoint, waiting up to a minute for other
    resources.
    """

    num_workers: NonNegativeInt | None = None
    cpus_per_worker: PositiveInt | None = None
    gpu: Literal["auto", "always", "never"] = "auto"
    max_failures: NonNegativeInt = 3

    @property
    def in_this_process(self) -> bool:
        """Whether the training needs no Ray."""
        return here(self.num_workers)

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.num_workers or 1
