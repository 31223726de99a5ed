"""Starts a Ray of one node on this machine's loopback interface and ends; `pipelines.cluster.guardian` watches it.

Its arguments are the folder of `pipelines.cluster.local`, and whether there is a dashboard.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray._private import services
from ray._private.node import Node
from ray._private.parameter import RayParams

_OBJECT_STORE = 512 * 2**20  # bytes
# Ray ends workers that were idle for 1 s where there are more than CPUs, and the next task waits for another one's
# imports: on two cores extraction lost a third of its speed to that.
_IDLE_MS = 30_000
_SECONDS = 240.0  # in which the node is there: Ray gives it 30, in which a busy machine has not loaded its agents


def main() -> None:
    """Start it, and write down where it listens and which processes it cannot live without."""
    services.get_node = _patient(services.get_node)
    folder, dashboard = Path(sys.argv[1]), sys.argv[2] == "dashboard"
    parameters = RayParams(
        node_ip_address="127.0.0.1",
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        dashboard_port=None,  # 8265, or the next that is free
        dashboard_agent_listen_port=0,
        # Training moves no data through it, extraction a few shards; the default takes 30 % of the memory.
        object_store_memory=_OBJECT_STORE,
        temp_dir=str(folder / "r"),
        no_monitor=True,  # there is nothing to scale
        include_log_monitor=False,  # workers' lines are not shown
        _system_config={
            "idle_worker_killing_time_threshold_ms": _IDLE_MS,
            "worker_niceness": 0,  # as a training in this process has; with Ray's 15 it waits for all other work
            "agent_register_timeout_ms": int(_SECONDS * 1000),
        },
    )
    node = Node(parameters, head=True, shutdown_at_exit=False, spawn_reaper=False, ray_init_cluster=True)
    processes = {name: node.all_processes[name][0].process.pid for name in ("gcs_server", "raylet")}
    written = folder / "started.json.part"
    written.write_text(json.dumps({"address": node.address, "processes": processes}))
    written.rename(folder / "started.json")


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ask until the node is there, and not for the 30 s after which Ray no longer would."""

    def ask(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:  # it is not there yet, or not any more
                if time.monotonic() > deadline or not _raylet_lives():
                    raise
                time.sleep(0.2)

    return ask


def _raylet_lives() -> bool:
    own = psutil.Process().children()
    return any(each.name() == "raylet" and each.status() != psutil.STATUS_ZOMBIE for each in own)


if __name__ == "__main__":
    main()
