"""What only Ray can show: the same numbers as in this process, several workers, mistakes and losses among them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from cprfl.errors import ClusterError, DatasetError, UserError
from cprfl.experiment import load
from cprfl.resources import ResourcesConfig
from cprfl.training.checkpoint import load_info
from pipelines.cluster.abandoned import abandoned_workers_freed
from pipelines.cluster.resources import cpus_of_tasks, scaling
from pipelines.stages import run as stages
from pipelines.stages.preprocess import preprocess
from pipelines.stages.train import train_stage
from tests.helpers import runs

ON_RAY = ["resources.num_workers=1", "encoder.num_workers=1"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.usefixtures("ray_session")
def test_a_ray_worker_and_this_process_give_the_same_bits(small_config: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for where, overrides in (("here", []), ("ray", ON_RAY)):
        changes = ["train.validation=0.25", "train.select=best", f"feature_dir={tmp_path}/{where}", *overrides]
        experiment = load(small_config, [*changes, f"name={where}"])
        prepared = preprocess(experiment)
        assert prepared.store is not None
        shards = {path.name: path.read_bytes() for path in (tmp_path / where).glob("*/*.parquet")}
        checkpoint = train_stage(experiment)
        found[where] = shards, files(checkpoint), load_info(checkpoint).metrics
    assert len(found["here"][0]) == 1
    assert found["here"] == found["ray"]


@pytest.mark.usefixtures("ray_session")
def test_a_tower_that_moves_comes_out_the_same(small_config: Path) -> None:
    """Also where building the encoder draws random numbers, here before the training and there during it."""
    moving = ["train.backbone=adapter", "model.standardize=false", "train.epochs=1", "train.finetune.num_processes=0"]
    overrides = [*moving, "encoder={name: open_clip, model: cprfl-embedded, pretrained: random}"]
    here, there = (
        train_stage(load(small_config, [*overrides, f"name={name}", f"resources.num_workers={workers}"]))
        for name, workers in (("here", 0), ("there", 1))
    )
    assert files(here) == files(there)
    assert (here / "tower.safetensors").exists()


@pytest.mark.usefixtures("ray_session")
def test_two_workers_weigh_members_of_any_kind_and_keep_the_best_epoch(small_config: Path) -> None:
    """That two workers are deterministic shows in `test_two_nodes`, which compares them with two plain processes."""
    cprfl = "{name: cprfl, standardize: true, dim: 32, num_heads: 2, head_dim: 16, mlp_dim: 32}"
    members = f"[{cprfl}, {{name: logistic_regression, strengths: [0.1]}}]"
    model = f"model={{name: ensemble, weights: fitted, num_folds: 2, members: {members}}}"
    experiment = load(small_config, [model, "resources.num_workers=2", "train.validation=0.25", "train.select=best"])
    result = stages.run(experiment)["small"]
    assert result.metrics["mAP"] > 0
    (run,) = runs(experiment)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/mAP")
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4]
    best = max(metric.value for metric in history)
    assert load_info(experiment.folder / "checkpoint").metrics["val/mAP"] == pytest.approx(best)


@pytest.mark.usefixtures("ray_session")
def test_a_user_s_mistake_in_a_worker_reaches_the_user_and_fails_the_run(small_config: Path) -> None:
    experiment = load(small_config, ["train.lr=1e30", "train.clip_norm=null", "resources.num_workers=1"])
    with pytest.raises(UserError, match=r"the loss is .* on images"):
        stages.run(experiment)
    (run,) = runs(experiment)
    assert run.info.status == "FAILED"


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_there_is_room_for_are_refused(small_config: Path) -> None:
    with pytest.raises(DatasetError, match="16 images for 64 workers"):
        train_stage(load(small_config, ["resources.num_workers=64"]))
    with pytest.raises(ClusterError, match="1 workers need 64 CPU each, the cluster has room for 0"):
        train_stage(load(small_config, ["resources.num_workers=1", "resources.cpus_per_worker=64"]))


@pytest.mark.parametrize(
    ("nodes", "workers", "share", "cpus", "gpu"),
    [
        ([(8, 0)] * 4, 1, 1, 8, False),  # one worker stands on one node
        ([(8, 0)] * 4, 4, 1, 8, False),
        ([(8, 0)] * 4, 5, 1, 4, False),
        ([(8, 0), (2, 0)], 2, 1, 4, False),
        ([(0, 0), (4, 0)], 1, 1, 4, False),  # a head without CPUs
        ([(2, 0)], 1, 2, 1, False),
        ([(2, 0)], 1, 8, 1, False),
        ([(32, 0), (8, 1)], 1, 1, 8, True),  # where the GPU is
        ([(32, 4)], 4, 1, 8, True),
        ([(32, 1), (4, 1)], 2, 1, 4, True),
        ([(32, 1)], 2, 1, 16, False),
    ],
)
def test_a_worker_asks_for_what_one_node_has(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[int, int]], workers: int, share: int, cpus: int, gpu: bool
) -> None:
    found = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)} if c else {}} for c, g in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    scaled = scaling(ResourcesConfig(num_workers=workers), share)
    assert (scaled.resources_per_worker, scaled.use_gpu) == ({"CPU": cpus}, gpu)


@pytest.mark.parametrize(
    ("nodes", "count", "gpu", "cpus"),
    [
        ([(1, 0), (1, 0)], 1, False, 1),  # two nodes together are no room for one task
        ([(8, 0), (2, 0)], 1, False, 8),
        ([(8, 0), (2, 0)], 5, False, 2),
        ([(2, 0)], 9, False, 1),
        ([(32, 0), (8, 2)], 9, True, 4),  # as many as there are GPUs run at once
        ([(32, 0), (8, 2)], 1, True, 8),
    ],
)
def test_a_task_asks_for_what_one_node_has(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[int, int]], count: int, gpu: bool, cpus: int
) -> None:
    found = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    assert cpus_of_tasks(count, gpu) == cpus


def test_tasks_for_which_no_node_is_left_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": False, "Resources": {"CPU": 8.0}}])
    with pytest.raises(ClusterError, match="no node with a CPU at present"):
        cpus_of_tasks(1, gpu=False)


@pytest.mark.usefixtures("ray_session")
def test_cpus_of_a_killed_training_are_given_back() -> None:
    @ray.remote(num_cpus=0)
    class Controller:
        def take(self) -> str:
            group = placement_group([{"CPU": 1}])
            ray.get(group.ready())
            return group.id.hex()

    controller = Controller.remote()  # type: ignore[attr-defined]
    taken = ray.get(controller.take.remote())
    waiting = placement_group([{"memory": 1}])  # as Tune's own groups: empty, and not abandoned
    ray.get(waiting.ready())
    ray.kill(controller)
    with abandoned_workers_freed(seconds=0.5):
        deadline = time.monotonic() + 60
        while placement_group_table()[taken]["state"] != "REMOVED":
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert placement_group_table()[waiting.id.hex()]["state"] == "CREATED"
