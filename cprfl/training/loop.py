"""The training loop: plain PyTorch, the same on one process and on many.

Random numbers follow from seed, epoch and rank alone, and batches from seed and epoch, so that a resumed run repeats
exactly what an uninterrupted one does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cprfl.errors import NonFiniteError
from cprfl.training.checkpoint import TrainingState
from cprfl.training.config import TrainConfig
from cprfl.training.ema import Ema
from cprfl.training.optimizer import adamw, one_cycle


class TrainingData(NamedTuple):
    """Cached features of the training images, in memory: K views each."""

    image_ids: tuple[str, ...]
    grids_NKVD: Tensor
    targets_NC: Tensor


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
    data: TrainingData,
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
        model: gives logits [B, c] of features [B, V, D].
        loss: of (logits, targets).
        data: all training images; each worker takes its part of every batch.
        config: how to train.
        seed: of batches, views and dropout.
        worker: this process.
        on_epoch_end: called on every worker after each epoch.
        validate: metrics of the weights to keep.
        resume: epochs done, and the state saved after them.

    Raises:
        NonFiniteError: as soon as an epoch's loss is NaN or infinite, naming the images of the first such batch.
    """
    model.to(worker.device)
    network = _distributed(model, worker)
    optimizer = adamw(model.named_parameters(), config.lr, config.weight_decay)
    steps = len(_batches(len(data.image_ids), config.batch_size, worker.world_size, seed=0))
    schedule = one_cycle(optimizer, steps * (config.schedule_epochs or config.epochs), config.warmup)
    ema = Ema(model, config.ema_decay)
    done = 0
    if resume is not None:
        done, state = resume
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        schedule.load_state_dict(state.schedule)
        ema.load(state.ema, state.ema_steps)
    for epoch in range(done + 1, config.epochs + 1):
        torch.manual_seed((seed * 100_003 + epoch) * 1_009 + worker.rank)
        batch_losses = []
        network.train()
        for rows in _batches(len(data.image_ids), config.batch_size, worker.world_size, seed * 100_003 + epoch):
            features_BVD, targets_BC = _load(data, rows[worker.rank :: worker.world_size], worker.device)
            with _autocast(config, worker.device):
                batch_loss = loss(network(features_BVD), targets_BC)
            optimizer.zero_grad(set_to_none=True)
            batch_loss.backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            schedule.step()
            ema.update()
            batch_losses.append(batch_loss.detach())
        losses = torch.stack(batch_losses)
        _check_finite(losses, data, config, worker, seed * 100_003 + epoch)
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
    return nn.parallel.DistributedDataParallel(model, device_ids=devices)


def _batches(num_images: int, batch_size: int, world_size: int, seed: int) -> list[Tensor]:
    """Rows of each batch in random order; the last is filled up from the first so that all workers have as many."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    surplus = -num_images % world_size
    return list(torch.cat([order, order[:surplus]]).split(max(batch_size // world_size, 1) * world_size))


def _load(data: TrainingData, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of one view of each image, drawn anew, and targets."""
    num_views = data.grids_NKVD.shape[1]
    views = torch.randint(num_views, (len(rows),)) if num_views > 1 else torch.zeros(len(rows), dtype=torch.long)
    features_BVD = data.grids_NKVD[rows, views].to(device, non_blocking=True).float()
    return features_BVD, data.targets_NC[rows].to(device, non_blocking=True)


def _autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if half else contextlib.nullcontext()


def _mean_over_workers(value: Tensor, worker: Worker) -> float:
    if worker.world_size > 1:
        dist.all_reduce(value)
        value = value / worker.world_size
    return float(value)


def _check_finite(losses: Tensor, data: TrainingData, config: TrainConfig, worker: Worker, seed: int) -> None:
    """Once an epoch, so that no step waits for the device."""
    finite = torch.isfinite(losses)
    if not finite.all():
        step = int((~finite).nonzero()[0])
        rows = _batches(len(data.image_ids), config.batch_size, worker.world_size, seed)[step]
        ids = [data.image_ids[row] for row in rows[worker.rank :: worker.world_size].tolist()]
        raise NonFiniteError(
            f"step {step + 1} of the epoch: the loss is {float(losses[step])} on images {', '.join(ids[:8])}"
            f"{' ...' if len(ids) > 8 else ''}; lower train.lr, or set train.precision=float32; the last good "
            "checkpoint is kept"
        )


def predict(model: nn.Module, grids: Iterator[Tensor], device: torch.device) -> Tensor:
    """Logits [n, c], float32 on the CPU, of batches of grid features [B, V, D]."""
    model.eval().to(device)
    with torch.inference_mode():
        return torch.cat([model(grid.to(device).float()).float().cpu() for grid in grids])
