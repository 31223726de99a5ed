"""The training loop: plain PyTorch, the same on one process and on many.

Random numbers follow from seed, epoch and rank alone, and batches from seed and epoch, so that a resumed run repeats
exactly what an uninterrupted one does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cprfl.errors import NonFiniteError
from cprfl.models.fine_tuned import FineTuned
from cprfl.training.checkpoint import TrainingState
from cprfl.training.config import TrainConfig
from cprfl.training.ema import Ema
from cprfl.training.optimizer import SETTINGS, adamw, one_cycle
from cprfl.training.sources import TrainingSource


@dataclass(frozen=True)
class Worker:
    """One of ``world_size`` processes that train together; gradients are averaged by ``torch.distributed``."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


class EpochEnd(NamedTuple):
    """What an epoch's end hands to whoever reports and stores it.

    Attributes:
        epoch: counted from 1.
        metrics: ``train/loss``, ``train/lr`` and what ``validate`` gave.
        weights: the weights to keep (averaged where there is an average).
        state: what resuming needs.
    """

    epoch: int
    metrics: dict[str, float]
    weights: dict[str, Tensor]
    state: TrainingState


def fit(
    model: nn.Module,
    loss: nn.Module,
    data: TrainingSource,
    config: TrainConfig,
    *,
    seed: int,
    worker: Worker,
    on_epoch_end: Callable[[EpochEnd], None],
    validate: Callable[[dict[str, Tensor]], dict[str, float]] | None = None,
    resume: tuple[int, TrainingState] | None = None,
) -> None:
    """Train ``model`` in place.

    Args:
        model: gives logits of the source's inputs, [B, c], or [M, B, c] for M members of an ensemble.
        loss: of (logits, targets).
        data: all training images; each worker takes its part.
        config: how to train.
        seed: of batches, views and dropout.
        worker: this process.
        on_epoch_end: called on every worker after each epoch.
        validate: metrics of the weights to keep.
        resume: epochs done, and the state saved after them.

    Raises:
        NonFiniteError: where a feature or a loss is NaN or infinite, naming the images. The features are looked at
            before they go to the device; the loss at once on a CPU, at the epoch's end elsewhere, and in either case
            before a checkpoint is written.
    """
    model.to(worker.device)
    network = _compiled(_distributed(model, worker), config, worker.device)
    optimizer = adamw(model, config)
    batch_size = max(config.batch_size // worker.world_size, 1)
    steps = -(-data.num_images // (batch_size * worker.world_size))
    schedule = one_cycle(optimizer, steps * (config.schedule_epochs or config.epochs), config.warmup)
    ema = Ema(model, config.ema_decay)
    done = 0
    if resume is not None:
        done, state = resume
        model.load_state_dict(state.model)
        rates = [{name: group[name] for name in SETTINGS} for group in optimizer.param_groups]
        optimizer.load_state_dict(state.optimizer)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update(rate)  # the configuration's: a population's member goes on with other ones
        schedule.load_state_dict(state.schedule)
        ema.load(state.ema, state.ema_steps)
    for epoch in range(done + 1, config.epochs + 1):
        epoch_seed = seed * 100_003 + epoch
        torch.manual_seed(epoch_seed * 1_009 + worker.rank)
        batch_losses: list[Tensor] = []
        batch_ids: list[Sequence[str]] = []
        network.train()
        for inputs, targets_BC, image_ids in data.batches(batch_size, epoch_seed, worker.rank, worker.world_size):
            _check_inputs(inputs, image_ids)
            targets_BC = targets_BC.to(worker.device, non_blocking=True)
            with _autocast(config, worker.device):
                logits = network(_on_device(inputs, worker.device))
                batch_loss = loss(logits, targets_BC.expand_as(logits))
            batch_losses.append(batch_loss.detach())
            batch_ids.append(image_ids)
            if worker.device.type == "cpu":  # elsewhere looking at a loss makes the host wait for the device
                _check_losses(batch_losses[-1:], batch_ids[-1:])
            optimizer.zero_grad(set_to_none=True)
            batch_loss.backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
            ema.update()
        _check_losses(batch_losses, batch_ids)
        _check_weights(model, batch_ids[-1])
        losses = torch.stack(batch_losses)
        weights = ema.state_dict() if config.ema_decay > 0 else model.state_dict()
        metrics = {
            "train/loss": _mean_over_workers(losses.mean(), worker),
            "train/lr": float(schedule.get_last_lr()[0]),
        }
        if validate is not None:
            network.eval()
            metrics |= validate(weights)
        state = TrainingState(
            model.state_dict(), optimizer.state_dict(), schedule.state_dict(), ema.state_dict(), ema.steps
        )
        on_epoch_end(EpochEnd(epoch, metrics, weights, state))


def _distributed(model: nn.Module, worker: Worker) -> nn.Module:
    if worker.world_size == 1:
        return model
    devices = [worker.device] if worker.device.type == "cuda" else None
    unused = isinstance(model, FineTuned)  # an encoder's own summary of the image, which no loss depends on
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)


def _compiled(network: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    wanted = config.compile == "always" or (config.compile == "auto" and device.type == "cuda")
    return cast(nn.Module, torch.compile(network)) if wanted else network


def _autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if half else contextlib.nullcontext()


def _mean_over_workers(value: Tensor, worker: Worker) -> float:
    if worker.world_size > 1:
        dist.all_reduce(value)
        value = value / worker.world_size
    return float(value)


def _check_inputs(inputs: Tensor, image_ids: Sequence[str]) -> None:
    if inputs.is_floating_point() and not torch.isfinite(inputs).all():
        finite_B = torch.isfinite(inputs).flatten(1).all(dim=1)
        ids = [image_id for image_id, finite in zip(image_ids, finite_B.tolist(), strict=True) if not finite]
        raise NonFiniteError(
            f"features of images {_listed(ids)} contain NaN or infinity; `cprfl features verify` looks for damage; the "
            "last good checkpoint is kept"
        )


def _check_losses(losses: list[Tensor], batch_ids: list[Sequence[str]]) -> None:
    finite = torch.isfinite(torch.stack(losses))
    if not finite.all():
        step = int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"the loss is {float(losses[step])} on images {_listed(batch_ids[step])}; lower train.lr, or set "
            "train.precision=float32; the last good checkpoint is kept"
        )


def _check_weights(model: nn.Module, last_ids: Sequence[str]) -> None:
    """The last step of an epoch may break weights whose loss was finite."""
    norms = torch._foreach_norm([parameter.detach() for parameter in model.parameters()])
    if not torch.isfinite(torch.stack(norms)).all():
        raise NonFiniteError(
            f"the weights are NaN or infinite after the step on images {_listed(last_ids)}; lower train.lr, or set "
            "train.precision=float32; the last good checkpoint is kept"
        )


def _listed(ids: Sequence[str]) -> str:
    return f"{', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}"


def _on_device(inputs: Tensor, device: torch.device) -> Tensor:
    """Features as float32; images stay as they are."""
    inputs = inputs.to(device, non_blocking=True)
    return inputs.float() if inputs.is_floating_point() else inputs


def predict(model: nn.Module, batches: Iterator[Tensor], device: torch.device) -> Tensor:
    """Logits [n, c], float32 on the CPU, of batches of the model's input."""
    model.eval().to(device)
    with torch.inference_mode():
        return torch.cat([model(_on_device(batch, device)).float().cpu() for batch in batches])
