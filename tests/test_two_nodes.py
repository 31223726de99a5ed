"""Two nodes: work spreads over both, a lost worker or node costs no result, storage that is not shared is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from ray.cluster_utils import Cluster

from cprfl.data.feature_store import FeatureStore
from cprfl.experiment import Experiment, load
from cprfl.preparation import read_prepared
from cprfl.recipe import Epoch, run_training
from cprfl.training.checkpoint import load_info
from cprfl.training.loop import Worker
from pipelines.cluster.connection import disconnect
from pipelines.cluster.joining import INSIST
from pipelines.stages.preprocess import preprocess
from tests.helpers import command, command_line, free_ports, runs, steps, wait_for

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
EPOCHS = 120
TRAINING = [f"train.epochs={EPOCHS}", "resources.num_workers=2", "resources.cpus_per_worker=1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and a second node, each with one CPU, beside whatever else this machine runs."""
    disconnect()  # the suite's own session is started anew by whoever needs it
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    before = dict(os.environ)
    os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", INSIST: "1"}
    dashboard, agent = free_ports(2)
    quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000,
             "health_check_failure_threshold": 3, "agent_register_timeout_ms": 120_000,
             "worker_niceness": 0}  # fmt: skip
    found = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "include_dashboard": False, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard,
                        "dashboard_agent_listen_port": agent, "_system_config": quick},
    )  # fmt: skip
    yield found
    found.shutdown()
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def second(cluster: Cluster) -> Any:
    """The node beside the head: what the test before has left, or a new one."""
    others = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    return others[0] if others else cluster.add_node(**NODE)


def start(cluster: Cluster, stage: str, config: Path, *overrides: str) -> subprocess.Popen[str]:
    """A stage in a process of its own, connected to the cluster."""
    words = [stage, str(config), *(word for value in overrides for word in ("--set", value))]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(command(*words), env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """Its stderr, once it has ended well."""
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def train_part(rank: int, settings: dict[str, Any], record: dict[str, Any], folder: Path) -> None:
    """One of two plain processes that train together, without Ray; the first writes the last epoch's metrics."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    experiment = Experiment.model_validate(settings)

    def tell(epoch: Epoch) -> None:
        if epoch.number == EPOCHS and epoch.rank == 0:
            (folder / "metrics.json").write_text(json.dumps(epoch.metrics))

    run_training(experiment, read_prepared(experiment, record), Worker(torch.device("cpu"), rank, 2), tell)
    dist.destroy_process_group()


def undisturbed_metrics(experiment: Experiment, folder: Path) -> dict[str, float]:
    """What two workers reach that nothing happens to."""
    prepared = preprocess(experiment)
    torch.multiprocessing.spawn(train_part, (experiment.model_dump(mode="json"), prepared.record, folder), nprocs=2)
    return dict(json.loads((folder / "metrics.json").read_text()))


def metrics(output: Path) -> dict[str, float]:
    return json.loads((output / "small" / "checkpoint" / "checkpoint.json").read_text())["metrics"]


def latest_epoch(output: Path) -> int:
    """The epoch of the latest checkpoint of a training that stands still."""
    folders = (output / "small" / "training").glob("*/checkpoint_[0-9]*")
    return load_info(max(folders, key=lambda folder: folder.name)).epoch


def workers_by_node(cluster: Cluster, kind: str = "RayTrainWorker") -> dict[int, list[psutil.Process]]:
    """Processes of the training's workers, or of another kind of actor, by the raylet that started them."""
    found: dict[int, list[psutil.Process]] = {}
    for node in cluster.list_all_nodes():
        (raylet,) = node.all_processes["raylet"]
        children = psutil.Process(raylet.process.pid).children()
        if chosen := [child for child in children if kind in command_line(child)]:
            found[raylet.process.pid] = chosen
    return found


def wait_for_checkpoint(output: Path, process: subprocess.Popen[str], later_than: str = "") -> str:
    """The name of the first checkpoint folder later than another; names ascend with time."""
    training = output / "small" / "training"
    deadline = time.monotonic() + 200
    while True:
        newest = max((folder.name for folder in training.glob("*/checkpoint_[0-9]*")), default="")
        if newest > later_than:
            return newest
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_worker_and_a_lost_node_change_no_metric(
    cluster: Cluster, second: Any, small_config: Path, tmp_path: Path
) -> None:
    undisturbed = undisturbed_metrics(load(small_config, TRAINING), tmp_path)
    disturbed = tmp_path / "disturbed"
    process = start(cluster, "train", small_config, *TRAINING, f"output_dir={disturbed}")
    wait_for_checkpoint(disturbed, process)
    assert [len(on_node) for on_node in workers_by_node(cluster).values()] == [1, 1]
    [victim] = next(iter(workers_by_node(cluster).values()))
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    before = wait_for_checkpoint(disturbed, process)
    wait_for_checkpoint(disturbed, process, later_than=before)
    cluster.remove_node(second, allow_graceful=True)
    assert latest_epoch(disturbed) < EPOCHS
    cluster.add_node(**NODE)
    ended(process)
    assert metrics(disturbed) == undisturbed
    (run,) = runs(load(small_config, [f"output_dir={disturbed}"]))
    assert run.info.status == "FINISHED"
    assert set(steps(run.info.run_id)) == set(range(1, EPOCHS + 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_extraction_runs_on_both_nodes_and_survives_the_loss_of_one(
    cluster: Cluster, second: Any, small_config: Path, tmp_path: Path
) -> None:
    root = tmp_path / "features"
    process = start(cluster, "preprocess", small_config, f"feature_dir={root}", "encoder.views=64",
                    "encoder.num_workers=2")  # fmt: skip
    deadline = time.monotonic() + 120
    while len(workers_by_node(cluster, "MapWorker")) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    wait_for(lambda: len(list(root.glob("*/features-*"))) >= 3)
    cluster.remove_node(second, allow_graceful=False)
    cluster.add_node(**NODE)
    ended(process)
    (folder,) = root.iterdir()
    store = FeatureStore.open(str(folder))
    store.verify()
    assert (store.num_images, store.views) == (24, 64)


@pytest.mark.slow
def test_a_machine_that_is_no_node_is_told(cluster: Cluster, small_config: Path) -> None:
    """As in a container beside those of the cluster: it sees none of their processes."""
    alone = ["unshare", "-rpf", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids process namespaces, by which the test hides the cluster's nodes")
    done = subprocess.run(
        [*alone, *command("train", str(small_config), "--set", "resources.num_workers=1")],
        env={**os.environ, "RAY_ADDRESS": cluster.address}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "is no node of it; `ray start --address=" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_storage_that_a_node_does_not_share_is_refused_before_the_start(
    cluster: Cluster, small_config: Path, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids mount namespaces, by which the test hides a folder from a node")
    output = tmp_path / "outputs"
    output.mkdir(exist_ok=True)
    own = f"mount --make-rprivate / && mount -t tmpfs none {output}"
    node = f"{sys.executable} -m ray.scripts.scripts start --address {cluster.address} --num-cpus 1 --block "
    node += f"--object-store-memory {80 * 2**20} --disable-usage-stats"
    log = (tmp_path / "node.log").open("w")
    stranger = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", f"{own} && exec {node}"],
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (tmp_path / "node.log").read_text():
            assert time.monotonic() < deadline
            assert stranger.poll() is None, (tmp_path / "node.log").read_text()
            time.sleep(0.2)
        process = start(cluster, "train", small_config)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert f"{output}/small is not one folder for the whole cluster" in err
        assert "--set output_dir=/shared/..." in err
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
