"""Connecting to Ray, and what a run takes of it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from cprfl.errors import ClusterError
from cprfl.experiment import ResourcesConfig

if TYPE_CHECKING:
    from ray.train import ScalingConfig


def connect() -> None:
    """Join the cluster named by ``RAY_ADDRESS``, or start Ray on this machine; nothing if already connected.

    Raises:
        ClusterError: where the address does not answer.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES of CPU tasks alone
    # Ray Train takes in one report per poll of its workers, and polls every 2 s: longer than most epochs here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start one, or "
                "unset RAY_ADDRESS to run on this machine"
            ) from None
        return
    # Training moves no data through the object store; the default would take 30 % of the memory.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(
        include_dashboard=False, logging_level=logging.WARNING, object_store_memory=256 * 1024**2, log_to_driver=False
    )


def scaling(resources: ResourcesConfig) -> ScalingConfig:
    """Ray Train's scaling for a run on the connected cluster.

    Raises:
        ClusterError: where the cluster has fewer CPUs or GPUs than the run asks for.
    """
    import ray
    from ray.train import ScalingConfig

    total = ray.cluster_resources()
    use_gpu = resources.gpu == "always" or (resources.gpu == "auto" and total.get("GPU", 0) >= resources.num_workers)
    cpus = resources.cpus_per_worker or max(1, int(total.get("CPU", 1)) // resources.num_workers)
    needed = {"CPU": cpus * resources.num_workers, "GPU": resources.num_workers if use_gpu else 0}
    for kind, amount in needed.items():
        if amount > total.get(kind, 0):
            raise ClusterError(
                f"resources: {resources.num_workers} workers need {amount} {kind}, the cluster has "
                f"{total.get(kind, 0):g}; lower resources.num_workers, or change resources.cpus_per_worker or .gpu"
            )
    return ScalingConfig(num_workers=resources.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus})
