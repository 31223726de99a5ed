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

from cprfl.encoders.base import Encoded
from cprfl.errors import NonFiniteError
from cprfl.training.checkpoint import TrainingState
from cprfl.training.config import TrainConfig
from cprfl.training.ema import Ema
from cprfl.training.objective import Inputs, Objective
from cprfl.training.optimizer import SETTINGS, adamw, one_cycle
from cprfl.training.sources import LabelledBatch, Source


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
    objective: Objective,
    data: Source,
    config: TrainConfig,
    *,
    seed: int,
    worker: Worker,
    on_epoch_end: Callable[[EpochEnd], None],
    validate: Callable[[dict[str, Tensor]], dict[str, float]] | None = None,
    resume: tuple[int, TrainingState] | None = None,
) -> None:
    """Train ``objective`` in place.

    Args:
        objective: gives the parts of the loss of the source's inputs and targets.
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
    objective.to(worker.device)
    network = _compiled(_distributed(objective, worker), config, worker.device)
    optimizer = adamw(objective, config)
    batch_size = max(config.batch_size // worker.world_size, 1)
    steps = -(-data.num_images // (batch_size * worker.world_size))
    schedule = one_cycle(optimizer, steps * (config.schedule_epochs or config.epochs), config.warmup)
    ema = Ema(objective, config.ema_decay)
    done = 0
    if resume is not None:
        done, state = resume
        objective.load_kept_state(state.model)
        rates = [{name: group[name] for name in SETTINGS} for group in optimizer.param_groups]
        optimizer.load_state_dict(state.optimizer)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update(rate)  # the configuration's: a population's member goes on with other ones
        schedule.load_state_dict(state.schedule)
        ema.load(state.ema, state.ema_steps)
    trained = list(objective.trained_parameters().values())

    def step(parts: dict[str, Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        schedule.step()
        ema.update()

    for epoch in range(done + 1, config.epochs + 1):
        epoch_seed = seed * 100_003 + epoch
        torch.manual_seed(epoch_seed * 1_009 + worker.rank)
        network.train()
        batches = data.batches(batch_size, epoch_seed, worker.rank, worker.world_size)
        metrics = _train_epoch(network, batches, step, config, worker)
        _check_weights(trained, epoch)
        metrics["train/lr"] = float(schedule.get_last_lr()[0])
        weights = ema.state_dict() if config.ema_decay > 0 else objective.kept_state()
        if validate is not None:
            network.eval()
            metrics |= validate(weights)
        state = TrainingState(
            objective.kept_state(), optimizer.state_dict(), schedule.state_dict(), ema.state_dict(), ema.steps
        )
        on_epoch_end(EpochEnd(epoch, metrics, weights, state))


def _train_epoch(
    network: nn.Module,
    batches: Iterator[LabelledBatch],
    step: Callable[[dict[str, Tensor]], None],
    config: TrainConfig,
    worker: Worker,
) -> dict[str, float]:
    """Take a step for each batch; the mean losses over batches and workers."""
    losses: list[dict[str, Tensor]] = []
    ids: list[Sequence[str]] = []
    for inputs, targets_BC, image_ids in batches:
        _check_inputs(inputs, image_ids)
        with _autocast(config, worker.device):
            parts = network(_on_device(inputs, worker.device), targets_BC.to(worker.device, non_blocking=True))
        losses.append({name: part.detach() for name, part in parts.items()})
        ids.append(image_ids)
        if worker.device.type == "cpu":  # elsewhere looking at a loss makes the host wait for the device
            _check_losses(losses[-1:], ids[-1:])
        step(parts)
    _check_losses(losses, ids)
    return _mean_losses(losses, worker)


def score(
    objective: Objective, data: Source, image_ids: Sequence[str], batch_size: int, worker: Worker, members: bool = False
) -> Tensor:
    """Logits [n, c], float32 on the CPU, of all images of a source, in the order of ``image_ids``.

    Args:
        objective: what scores them, on the worker's device.
        data: the images; each worker takes its part, and all of them get all logits.
        image_ids: of the n images.
        batch_size: rows at a time.
        worker: this process.
        members: logits [m, n, c] of the method's members instead.
    """
    objective.to(worker.device).eval()

    def logits_of(inputs: Inputs) -> Tensor:
        encoded = objective.encode(_on_device(inputs, worker.device))
        logits: Tensor = objective.method.member_logits(*encoded) if members else objective.method(*encoded)
        return logits

    return mean_logits(logits_of, data, image_ids, batch_size, worker)


def mean_logits(
    logits_of: Callable[[Inputs], Tensor], data: Source, image_ids: Sequence[str], batch_size: int, worker: Worker
) -> Tensor:
    """Each image's logits, float32 [(m,) n, c] on the CPU: the mean over those of its scored rows (``encoder.crops``).

    Args:
        logits_of: logits [(m,) b, c] of b rows.
        data: the images; each worker takes its part, and all of them get all logits.
        image_ids: of the n images, in the order that is wanted.
        batch_size: rows at a time.
        worker: this process.
    """
    place = {image_id: number for number, image_id in enumerate(image_ids)}
    sums: Tensor | None = None
    rows_N1 = torch.zeros(len(place), 1)
    with torch.no_grad():
        for inputs, _, ids in data.in_order(batch_size, worker.rank, worker.world_size):
            with torch.inference_mode():
                logits = logits_of(inputs).float().cpu()  # a GPU would add one image's rows in any order
            places_B = torch.tensor([place[image_id] for image_id in ids])
            if sums is None:
                sums = logits.new_zeros(*logits.shape[:-2], len(place), logits.shape[-1])
            sums.index_add_(-2, places_B, logits)
            rows_N1.index_add_(0, places_B, torch.ones(len(ids), 1))
        if worker.world_size > 1:
            # A worker without a part knows no shape, so the others tell it: m (0 where there is none), n and c.
            shape = torch.tensor([0, *sums.shape][-3:] if sums is not None else [0, 0, 0], device=worker.device)
            dist.all_reduce(shape, dist.ReduceOp.MAX)
            if sums is None:
                sums = torch.zeros([size for size in shape.tolist() if size])
            sums, rows_N1 = sums.to(worker.device), rows_N1.to(worker.device)
            dist.all_reduce(sums)
            dist.all_reduce(rows_N1)
        assert sums is not None, "there is an image at least"
        return sums.div_(rows_N1).cpu()


def _distributed(objective: Objective, worker: Worker) -> nn.Module:
    if worker.world_size == 1:
        return objective
    devices = [worker.device] if worker.device.type == "cuda" else None
    unused = objective.tower is not None  # such as its own summary of the image, which not every loss depends on
    return nn.parallel.DistributedDataParallel(objective, device_ids=devices, find_unused_parameters=unused)


def _compiled(network: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    wanted = config.compile == "always" or (config.compile == "auto" and device.type == "cuda")
    return cast(nn.Module, torch.compile(network)) if wanted else network


def _autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if half else contextlib.nullcontext()


def _mean_losses(batch_losses: list[dict[str, Tensor]], worker: Worker) -> dict[str, float]:
    """``train/loss`` and, where it has several parts, each of them: means over batches and workers."""
    names = list(batch_losses[0])
    means = torch.stack([torch.stack([losses[name] for losses in batch_losses]).mean() for name in names])
    if worker.world_size > 1:
        dist.all_reduce(means)
        means = means / worker.world_size
    parts = {f"train/{name}": value for name, value in zip(names, means.tolist(), strict=True)}
    return {"train/loss": sum(parts.values())} | (parts if len(parts) > 1 else {})


def _check_inputs(inputs: Inputs, image_ids: Sequence[str]) -> None:
    for values in (inputs,) if isinstance(inputs, Tensor) else inputs:
        if not values.is_floating_point() or torch.isfinite(values).all():
            continue
        finite_B = torch.isfinite(values).flatten(1).all(dim=1)
        ids = [image_id for image_id, finite in zip(image_ids, finite_B.tolist(), strict=True) if not finite]
        raise NonFiniteError(
            f"features of images {_listed(ids)} contain NaN or infinity; `cprfl features verify` looks for damage; the "
            "last good checkpoint is kept"
        )


def _check_losses(batch_losses: list[dict[str, Tensor]], batch_ids: list[Sequence[str]]) -> None:
    totals = torch.stack([torch.stack(list(losses.values())).sum() for losses in batch_losses])
    finite = torch.isfinite(totals)
    if not finite.all():
        step = int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"the loss is {float(totals[step])} on images {_listed(batch_ids[step])}; lower train.lr, or set "
            "train.precision=float32; the last good checkpoint is kept"
        )


def _check_weights(trained: list[nn.Parameter], epoch: int) -> None:
    """The last step of an epoch may break weights whose loss was finite."""
    norms = torch._foreach_norm([parameter.detach() for parameter in trained])
    if not torch.isfinite(torch.stack(norms)).all():
        raise NonFiniteError(
            f"the weights are NaN or infinite after the last step of epoch {epoch}; lower train.lr, or set "
            "train.precision=float32; the last good checkpoint is kept"
        )


def _listed(ids: Sequence[str]) -> str:
    return f"{', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}"


def _on_device(inputs: Inputs, device: torch.device) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    return Encoded(*(values.to(device, non_blocking=True) for values in inputs))
