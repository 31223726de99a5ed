"""Connecting to Ray, and what a run takes of it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cprfl.errors import ClusterError
from cprfl.experiment import ResourcesConfig
from pipelines.background import in_background

if TYPE_CHECKING:
    from ray.train import ScalingConfig


_SPINNING = "GOMP_SPINCOUNT"
_OBJECT_STORE = 512 * 2**20  # bytes, of a Ray started here
# Ray ends workers that were idle for 1 s where there are more than CPUs, and the next task waits for another one's
# imports: on two cores extraction lost a third of its speed to that.
_IDLE_MS = 30_000


def connect(dashboard: bool = False) -> None:
    """Join the cluster named by ``RAY_ADDRESS``, or start Ray on this machine; nothing if already connected.

    Args:
        dashboard: of a Ray started here, on the loopback interface. Sweeps need it: Ray Train asks its server whether
            the controller of a stopped trial is gone, and keeps the trial's CPUs for ever if nobody answers.

    Raises:
        ClusterError: where the address does not answer.
    """
    import ray
    from ray.exceptions import AuthenticationError

    if ray.is_initialized():
        return
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
                address=address, logging_level=logging.WARNING, log_to_driver=False, runtime_env={"env_vars": workers}
            )
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
    import ray

    ray.init(
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        object_store_memory=_OBJECT_STORE,
        log_to_driver=False,
        runtime_env={"env_vars": workers},
        _system_config={"idle_worker_killing_time_threshold_ms": _IDLE_MS},
    )


def scaling(resources: ResourcesConfig, share: int = 1) -> ScalingConfig:
    """Ray Train's scaling for a run on the connected cluster, of which it gets one part in ``share``.

    Raises:
        ClusterError: where the cluster has fewer CPUs or GPUs than the run asks for.
    """
    import ray
    from ray.train import ScalingConfig

    total = ray.cluster_resources()
    use_gpu = resources.gpu == "always" or (resources.gpu == "auto" and total.get("GPU", 0) >= resources.num_workers)
    cpus = resources.cpus_per_worker or max(1, int(total.get("CPU", 1)) // resources.num_workers // share)
    needed = {"CPU": cpus * resources.num_workers, "GPU": resources.num_workers if use_gpu else 0}
    for kind, amount in needed.items():
        if amount > total.get(kind, 0):
            raise ClusterError(
                f"resources: {resources.num_workers} workers need {amount} {kind}, the cluster has "
                f"{total.get(kind, 0):g}; lower resources.num_workers, or change resources.cpus_per_worker or .gpu"
            )
    return ScalingConfig(num_workers=resources.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus})


def check_shared(folder: Path) -> None:
    """Make sure that every node of the cluster reads and writes the folder that this process does.

    A file is left there, and each node is asked to answer it with another.

    Raises:
        ClusterError: naming the nodes that do not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if set(nodes) == {here}:
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".shared-{uuid.uuid4().hex}"
    marker.touch()
    ask = ray.remote(_answer).options
    try:
        asked = {
            node: ask(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                str(marker), node
            )
            for node in nodes
        }
        ray.get(list(asked.values()), timeout=120)
        lacking = [f"{nodes[node]} ({node[:8]})" for node in nodes if not Path(f"{marker}.{node}").exists()]
    finally:
        for file in folder.glob(f"{marker.name}*"):
            file.unlink()
    if lacking:
        raise ClusterError(
            f"output_dir: {folder} is not one folder for the whole cluster, {', '.join(lacking)} has another or none; "
            "give the path of storage that all nodes mount, --set output_dir=/shared/..."
        )


def _answer(marker: str, node: str) -> None:
    if Path(marker).exists():
        Path(f"{marker}.{node}").touch()


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
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray.util.state import list_actors, list_placement_groups
    from ray.util.state.exception import RayStateApiException

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
