"""What a training takes of the connected cluster."""

from __future__ import annotations

import ray
from ray.train import ScalingConfig

from cprfl.errors import ClusterError
from cprfl.experiment import ResourcesConfig


def scaling(resources: ResourcesConfig, share: int = 1) -> ScalingConfig:
    """Ray Train's scaling for a training, of whose share of the CPUs there may be ``share`` at the same time.

    A worker stands on one node, so unless told otherwise it asks for no more than the smallest node that has CPUs can
    give to those workers that it must hold.

    Raises:
        ClusterError: where the nodes have fewer CPUs or GPUs than the training asks for.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    workers = resources.world_size
    use_gpu = resources.gpu == "always" or (resources.gpu == "auto" and gpus >= workers)
    per_worker = resources.cpus_per_worker or _fair_share(cpus, workers * share)
    places = sum(on_node // per_worker for on_node in cpus)
    if places < workers:
        raise ClusterError(
            f"resources: {workers} workers need {per_worker} CPU each, the cluster has room for {places} (CPUs of its "
            f"nodes: {', '.join(map(str, sorted(cpus))) or 'none'}); lower resources.num_workers or .cpus_per_worker"
        )
    if use_gpu and gpus < workers:
        raise ClusterError(
            f"resources: {workers} workers need a GPU each, the cluster has {gpus}; lower resources.num_workers, or "
            "set resources.gpu to auto"
        )
    return ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": per_worker})


def _fair_share(cpus: list[int], workers: int) -> int:
    """The most CPUs that each of so many workers can have, every one of them on one node; 1 where that is too many."""
    most = max(cpus, default=1)
    return next((each for each in range(most, 0, -1) if sum(n // each for n in cpus) >= workers), 1)
