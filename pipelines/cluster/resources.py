"""What a training takes of the connected cluster."""

from __future__ import annotations

import ray
from ray.train import ScalingConfig

from cprfl.errors import ClusterError
from cprfl.resources import ResourcesConfig


def scaling(resources: ResourcesConfig, share: int = 1) -> ScalingConfig:
    """Ray Train's scaling for a training, of whose share of the CPUs there may be ``share`` at the same time.

    A worker stands on one node, and one that needs a GPU on a node that has one. Unless told otherwise it asks for as
    many CPUs as each of them can have there.

    Raises:
        ClusterError: where the nodes have fewer CPUs or GPUs than the training asks for.
    """
    nodes = _nodes()
    workers, gpus = resources.world_size, sum(on_node for _, on_node in nodes)
    use_gpu = resources.gpu == "always" or (resources.gpu == "auto" and gpus >= workers)
    if use_gpu:
        nodes = [node for node in nodes if node[1]]
    cpus = [on_node for on_node, _ in nodes]
    per_worker = resources.cpus_per_worker or _cpus_each(nodes, workers * share, use_gpu)
    places = _places(nodes, per_worker, use_gpu)
    if use_gpu and gpus < workers:
        raise ClusterError(
            f"resources: {workers} workers need a GPU each, the cluster has {gpus}; lower resources.num_workers, or "
            "set resources.gpu to auto"
        )
    if places < workers:
        raise ClusterError(
            f"resources: {workers} workers need {per_worker} CPU each, the cluster has room for {places} (CPUs of its "
            f"nodes: {', '.join(map(str, sorted(cpus))) or 'none'}); lower resources.num_workers or .cpus_per_worker"
        )
    return ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": per_worker})


def cpus_of_tasks(count: int, gpu: bool) -> int:
    """How many CPUs each of so many tasks asks for, so that as many as there is room for run at once.

    A task stands on one node: what two nodes have together is no room for it.

    Args:
        count: of the tasks.
        gpu: whether each needs one.

    Raises:
        ClusterError: where no node has room for a single one.
    """
    nodes = _nodes()
    room = _places(nodes, 1, gpu)
    if room == 0:
        raise ClusterError(
            f"the Ray cluster has no node with a CPU{' and a GPU' if gpu else ''} at present; start one, or wait until "
            "it is back"
        )
    return _cpus_each(nodes, min(count, room), gpu)


def _nodes() -> list[tuple[int, int]]:
    """CPUs and GPUs of the living nodes that have a CPU."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in found if node.get("CPU", 0) >= 1]


def _cpus_each(nodes: list[tuple[int, int]], count: int, gpu: bool) -> int:
    """The most CPUs of which so many shares stand on the nodes; 1 where so many do not."""
    most = max((cpus for cpus, _ in nodes), default=0)
    return max((each for each in range(1, most + 1) if _places(nodes, each, gpu) >= count), default=1)


def _places(nodes: list[tuple[int, int]], cpus: int, use_gpu: bool) -> int:
    """How many workers of so many CPUs, with a GPU each or without, the nodes of (CPUs, GPUs) hold."""
    return sum(min(has // cpus, gpus) if use_gpu else has // cpus for has, gpus in nodes)
