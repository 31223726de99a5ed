"""How the workers of one training find each other on a Ray that listens on the loopback interface only.

PyTorch's usual meeting place is a store that the first worker serves on all interfaces, to whoever asks. Workers of one
machine meet in a file instead.
"""

from __future__ import annotations

import ipaddress
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.util import get_node_ip_address


def torch_config(use_gpu: bool) -> TorchConfig:
    """How workers of the Ray that this process is connected to meet."""
    if not ipaddress.ip_address(get_node_ip_address()).is_loopback:
        return TorchConfig()
    return _InAFile(backend="nccl" if use_gpu else "gloo")


@dataclass
class _InAFile(TorchConfig):
    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Join the workers of a group; one that is started anew meets elsewhere."""
        # The session's folder, which nobody else can enter and which is removed with Ray.
        folder = ray._private.worker._global_node.get_session_dir_path()
        place = Path(tempfile.mkdtemp(prefix="meeting-", dir=folder)) / "store"
        worker_group.execute(_set_torch_distributed_env_vars)
        joined = [
            worker_group.execute_single_async(
                rank, _setup_torch_process_group, backend=backend_config.backend, world_rank=rank,
                world_size=len(worker_group), init_method=f"file://{place}", timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]  # fmt: skip
        ray.get(joined)
