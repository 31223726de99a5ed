"""Whether all nodes of the cluster read and write one folder."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cprfl.errors import ClusterError
from pipelines.cluster.connection import failing_with_ray

_SECONDS = 120.0  # in which every node has answered
_LOOK = 0.5  # seconds that are waited at a time: signals, and that Ray is lost, are heard in between


def check_shared(folder: Path) -> None:
    """Make sure that every node of the cluster reads and writes the folder that this process does.

    A file is left there, and each node is asked to answer it with another.

    Raises:
        ClusterError: naming the nodes that do not.
    """
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
        _wait(list(asked.values()), folder)
        lacking = [f"{nodes[node]} ({node[:8]})" for node in nodes if not Path(f"{marker}.{node}").exists()]
    finally:
        for file in folder.glob(f"{marker.name}*"):
            file.unlink()
    if lacking:
        raise ClusterError(
            f"output_dir: {folder} is not one folder for the whole cluster, {', '.join(lacking)} has another or none; "
            "give the path of storage that all nodes mount, --set output_dir=/shared/..."
        )


def _wait(asked: list[ray.ObjectRef], folder: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        with failing_with_ray():
            answered, waiting = ray.wait(asked, num_returns=len(asked), timeout=_LOOK)
            if not waiting:
                ray.get(answered)
                return
    raise ClusterError(f"output_dir: not every node of the cluster answered within {_SECONDS:.0f} s, through {folder}")


def _answer(marker: str, node: str) -> None:
    if Path(marker).exists():
        Path(f"{marker}.{node}").touch()
