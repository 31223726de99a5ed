"""The loop: deterministic, resumable exactly, and the average is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cprfl.errors import CheckpointError, NonFiniteError
from cprfl.losses import AsymmetricLoss
from cprfl.models import CPRFL, LinearProbe, interaction
from cprfl.training.checkpoint import CheckpointInfo, load_info, load_state, load_weights, save_checkpoint
from cprfl.training.config import TrainConfig
from cprfl.training.ema import Ema
from cprfl.training.loop import EpochEnd, Worker, fit
from cprfl.training.optimizer import adamw
from cprfl.training.sources import TrainingBatch

CPU = Worker(torch.device("cpu"))


class InMemory:
    """Random features whose labels follow from them."""

    num_images = 50

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.grids = torch.randn(self.num_images, 1, 8, generator=generator).repeat(1, 4, 1).half()
        self.targets = (self.grids.float().mean(dim=1)[:, :5] > 0).float()

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[TrainingBatch]:
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        for rows in order[rank::world_size].split(batch_size):
            yield TrainingBatch(self.grids[rows], self.targets[rows], list(map(str, rows.tolist())))


def model() -> nn.Module:
    torch.manual_seed(0)
    return CPRFL(torch.randn(5, 6), 8, dim=16, num_heads=2, head_dim=4, mlp_dim=16, dropout=0.3)


def ends(**options: Any) -> list[EpochEnd]:
    """Every epoch's end, with the weights as they were then."""
    seen: list[EpochEnd] = []

    def keep(end: EpochEnd) -> None:
        seen.append(end._replace(weights={name: value.clone() for name, value in end.weights.items()}))

    settings = {"epochs": 4, "batch_size": 16, "lr": 0.01, "ema_decay": 0.9} | options.pop("train", {})
    arguments: dict[str, Any] = {"seed": 3, "worker": CPU, "on_epoch_end": keep} | options
    fit(
        arguments.pop("model", model()), AsymmetricLoss(), InMemory(), TrainConfig.model_validate(settings), **arguments
    )
    return seen


def same(first: EpochEnd, second: EpochEnd) -> bool:
    pairs = [(first.weights[name], second.weights[name]) for name in first.weights]
    return first.metrics == second.metrics and all(torch.equal(a, b) for a, b in pairs)


def test_the_same_seed_gives_the_same_run_bit_for_bit() -> None:
    first, again, other = ends(), ends(), ends(seed=4)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not same(first[-1], other[-1])
    assert first[-1].metrics["train/loss"] < first[0].metrics["train/loss"]


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def interrupt(end: EpochEnd) -> None:
        info = CheckpointInfo({}, ["a"], 8, "encoder", "text", end.epoch, end.metrics)
        save_checkpoint(tmp_path / str(end.epoch), end.weights, info, end.state)
        if end.epoch == 2:
            raise Stop

    whole = ends()
    with pytest.raises(Stop):
        ends(on_epoch_end=interrupt)
    torch.manual_seed(99)  # whatever happened in between
    resumed = ends(resume=(load_info(tmp_path / "2").epoch, load_state(tmp_path / "2")))
    assert [end.epoch for end in resumed] == [3, 4]
    assert same(resumed[-1], whole[-1])


def test_checkpoints_are_read_back_and_damage_is_named(tmp_path: Path) -> None:
    end = ends()[-1]
    info = CheckpointInfo({"name": "x"}, ["a"], 8, "encoder", "text", 4, end.metrics)
    save_checkpoint(tmp_path, end.weights, info, end.state)
    assert load_info(tmp_path) == info
    assert all(torch.equal(value, end.weights[name]) for name, value in load_weights(tmp_path).items())
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_info(tmp_path / "nowhere")


def test_the_average_follows_its_equation() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0)
    ema, expected = Ema(network, 0.5), 0.0
    for step, value in enumerate((1.0, 2.0, 3.0)):
        network.weight.data.fill_(value)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.state_dict()["weight"].item() == pytest.approx(expected)


def test_biases_and_norms_are_not_decayed() -> None:
    decayed, plain = adamw(model(), TrainConfig(lr=1.0, weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert plain["weight_decay"] == 0
    assert all(p.ndim < 2 for p in plain["params"])


def test_features_and_losses_that_are_not_finite_name_the_images() -> None:
    def train(data: InMemory, network: nn.Module) -> None:
        fit(network, AsymmetricLoss(), data, TrainConfig(batch_size=8), seed=0, worker=CPU,
            on_epoch_end=lambda _: pytest.fail("an epoch with a bad loss was kept"))  # fmt: skip

    for value in (float("nan"), float("inf")):
        bad = InMemory()
        bad.grids[7, 2, 3] = value
        with pytest.raises(NonFiniteError, match=r"features of images 7 contain NaN .*last good checkpoint is kept"):
            train(bad, LinearProbe(8, 5))
    broken = LinearProbe(8, 5)
    broken.linear.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the loss is nan on images (\d+, ){7}\d+; lower train.lr"):
        train(InMemory(), broken)
    torn = LinearProbe(8, 5, gain=0.0)  # a finite loss, and a decay that makes the weights infinite
    torn.linear.weight.data.fill_(1e20)
    with pytest.raises(NonFiniteError, match=r"the weights are NaN or infinite after the step on images \d+"):
        fit(torn, AsymmetricLoss(), InMemory(), TrainConfig(batch_size=1000, lr=1e28), seed=0, worker=CPU,
            on_epoch_end=lambda _: pytest.fail("an epoch with bad weights was kept"))  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_is_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interaction, "cheapest_way", lambda *_: "absorb")  # whose gradient is written out

    def train(compile_: str) -> EpochEnd:
        torch.manual_seed(0)
        network = CPRFL(torch.randn(5, 6), 8, dim=24, num_heads=3, head_dim=8, mlp_dim=16, dropout=0.0)
        return ends(train={"compile": compile_, "epochs": 2}, model=network)[-1]

    plain, compiled = train("never"), train("always")
    assert compiled.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=1e-4)
    assert compiled.weights.keys() == plain.weights.keys()
