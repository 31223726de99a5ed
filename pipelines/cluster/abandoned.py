"""Trainings that were killed while Ray Train was just ending: their CPUs are given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from pipelines.background import in_background


@contextmanager
def abandoned_workers_freed(seconds: float = 2.0) -> Iterator[None]:
    """Give back, while the block runs, the CPUs and GPUs of trainings of this process that were killed.

    Ray Train does so itself where a controller is killed while it trains; where it was just ending, its placement group
    stays, and whoever comes next waits for ever. A group of this job's without a living actor, at two looks in a row,
    is such a one. (Tune's own groups, which hold no CPU, may well be empty.)
    """
    with in_background(partial(_free_abandoned, seconds)):
        yield


def _free_abandoned(seconds: float, stop: threading.Event) -> None:
    context, suspected = ray.get_runtime_context(), set[str]()
    job, address = context.get_job_id(), context.gcs_address
    while not stop.wait(seconds):
        try:
            groups = list_placement_groups(address, [("state", "=", "CREATED")], limit=10_000, detail=True)
            actors = list_actors(address, [("state", "!=", "DEAD")], limit=10_000, detail=True)
        except RayStateApiException:  # it is busy; the next look will do
            continue
        used = {actor.placement_group_id for actor in actors}
        empty = {
            group.placement_group_id for group in groups
            if group.creator_job_id == job and group.placement_group_id not in used
            and any({"CPU", "GPU"} & set(bundle["unit_resources"]) for bundle in group.bundles or [])
        }  # fmt: skip
        for abandoned in empty & suspected:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(abandoned)))
        suspected = empty - suspected
