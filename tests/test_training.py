"""The loop: deterministic, resumable exactly, and the average is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cprfl.encoders.base import Encoded
from cprfl.errors import CheckpointError, NonFiniteError
from cprfl.losses import AsymmetricLoss
from cprfl.models import CPRFL, Facts, LinearProbe, Method, interaction
from cprfl.training.checkpoint import (
    CheckpointInfo,
    load_facts,
    load_info,
    load_state,
    load_weights,
    save_checkpoint,
)
from cprfl.training.config import TrainConfig
from cprfl.training.ema import Ema
from cprfl.training.loop import EpochEnd, Worker, fit, score
from cprfl.training.objective import Objective, split_kept_state
from cprfl.training.optimizer import adamw
from cprfl.training.sources import InOrder, LabelledBatch
from tests.helpers import facts_of

CPU = Worker(torch.device("cpu"))


class InMemory:
    """Random features whose labels follow from them."""

    num_images = 50

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.grids = torch.randn(self.num_images, 1, 8, generator=generator).repeat(1, 4, 1).half()
        self.targets = (self.grids.float().mean(dim=1)[:, :5] > 0).float()

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        yield from self._rows(order[rank::world_size].split(batch_size))

    def in_order(
        self, batch_size: int, rank: int = 0, world_size: int = 1, views: InOrder = "scored"
    ) -> Iterator[LabelledBatch]:
        yield from self._rows(torch.arange(self.num_images).flip(0)[rank::world_size].split(batch_size))

    def _rows(self, parts: Sequence[torch.Tensor]) -> Iterator[LabelledBatch]:
        for rows in parts:
            encoded = Encoded(self.grids[rows], self.grids[rows, 0])
            yield LabelledBatch(encoded, self.targets[rows], list(map(str, rows.tolist())))


def model(dropout: float = 0.3, **sizes: int) -> CPRFL:
    torch.manual_seed(0)
    config = {"dim": 16, "num_heads": 2, "head_dim": 4, "mlp_dim": 16, "dropout": dropout} | sizes
    return CPRFL(CPRFL.Config.model_validate(config), facts_of())


def probe(**options: object) -> LinearProbe:
    config = LinearProbe.Config.model_validate({"standardize": False, **options})
    return LinearProbe(config, facts_of())


def objective_of(method: Method, config: TrainConfig | None = None) -> Objective:
    return Objective(method, AsymmetricLoss(), config or TrainConfig())


def info_of(epoch: int = 4, metrics: dict[str, float] | None = None) -> CheckpointInfo:
    return CheckpointInfo({"name": "x"}, "key", ["a"], "encoder", "text", epoch, metrics or {}, holds_tower=False)


def ends(**options: Any) -> list[EpochEnd]:
    """Every epoch's end, with the weights as they were then."""
    seen: list[EpochEnd] = []

    def keep(end: EpochEnd) -> None:
        seen.append(end._replace(weights={name: value.clone() for name, value in end.weights.items()}))

    values = {"epochs": 4, "batch_size": 16, "lr": 0.003, "ema_decay": 0.9} | options.pop("train", {})
    settings = TrainConfig.model_validate(values)
    arguments: dict[str, Any] = {"seed": 3, "worker": CPU, "on_epoch_end": keep} | options
    fit(objective_of(arguments.pop("model", model()), settings), InMemory(), settings, **arguments)
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
        save_checkpoint(tmp_path / str(end.epoch), end.weights, facts_of(), info_of(end.epoch), end.state)
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
    info = info_of(4, end.metrics)
    save_checkpoint(tmp_path, end.weights, facts_of(), info, end.state)
    assert load_info(tmp_path) == info
    own, tower = split_kept_state(end.weights)
    assert not tower
    assert all(torch.equal(value, own[name]) for name, value in load_weights(tmp_path).items())
    facts: Facts = load_facts(tmp_path)
    assert facts.class_names == facts_of().class_names
    assert torch.equal(facts.text_embeddings_CM, facts_of().text_embeddings_CM)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="model.safetensors: damaged"):
        load_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_info(tmp_path / "nowhere")


def test_scores_come_in_the_order_that_was_asked_for() -> None:
    objective, data = objective_of(probe()), InMemory()
    ids = [str(row) for row in (7, 3, 49, *range(8, 49), 0, 1, 2, 4, 5, 6)]
    logits = score(objective, data, ids, 16, CPU)
    rows = list(map(int, ids))
    with torch.inference_mode():
        assert torch.allclose(logits, objective.method(data.grids[rows].float(), data.grids[rows, 0].float()))


def test_the_average_follows_its_equation() -> None:
    method = probe()
    method.linear.weight.data.fill_(0)
    ema, expected = Ema(objective_of(method), 0.5), 0.0
    for step, value in enumerate((1.0, 2.0, 3.0)):
        method.linear.weight.data.fill_(value)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.state_dict()["method.linear.weight"][0, 0].item() == pytest.approx(expected)


def test_biases_and_norms_are_not_decayed() -> None:
    decayed, plain = adamw(objective_of(model()), TrainConfig(lr=1.0, weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert plain["weight_decay"] == 0
    assert all(p.ndim < 2 for p in plain["params"])


def test_features_and_losses_that_are_not_finite_name_the_images() -> None:
    def train(data: InMemory, method: Method, **settings: Any) -> None:
        config = TrainConfig(**({"batch_size": 8} | settings))
        fit(objective_of(method), data, config, seed=0, worker=CPU,
            on_epoch_end=lambda _: pytest.fail("an epoch with a bad loss was kept"))  # fmt: skip

    for value in (float("nan"), float("inf")):
        bad = InMemory()
        bad.grids[7, 2, 3] = value
        with pytest.raises(NonFiniteError, match=r"features of images 7 contain NaN .*last good checkpoint is kept"):
            train(bad, probe())
    broken = probe()
    broken.linear.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the loss is nan on images (\d+, ){7}\d+; lower train.lr"):
        train(InMemory(), broken)
    torn = probe(gain=1e-30)  # a finite loss, and a decay that makes the weights infinite
    torn.linear.weight.data.fill_(1e20)
    with pytest.raises(NonFiniteError, match=r"the weights are NaN or infinite after the last step of epoch 1"):
        train(InMemory(), torn, batch_size=1000, lr=1e28)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_is_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interaction, "cheapest_way", lambda *_: "absorb")

    def train(compile_: str) -> EpochEnd:
        method = model(dropout=0.0, dim=24, num_heads=3, head_dim=8)
        return ends(train={"compile": compile_, "epochs": 2}, model=method)[-1]

    plain, compiled = train("never"), train("always")
    assert compiled.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=1e-4)
    assert compiled.weights.keys() == plain.weights.keys()
