"""Losses of targets of which some are unknown, against the same written out for the entries that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cprfl.losses import (
    CONFIGS,
    AsymmetricLoss,
    BalancedAsymmetricLoss,
    DBStar,
    DistributionBalancedLoss,
    LDAMLoss,
    WeightedFocalLoss,
)
from tests.every_loss import CLASSES, COUNTED, COUNTS, NUM_IMAGES, VARIANTS, built, drawn


def batch(seed: int, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits, which are nonsense where nothing is known, and targets."""
    targets = torch.from_numpy(drawn(seed, share=share))
    logits = torch.from_numpy(3 * np.random.default_rng(seed).normal(size=targets.shape))
    return logits.masked_fill(targets.isnan(), torch.nan).requires_grad_(), targets


# Each loss written out for a logit of a class, whether the image shows the class, and all that it shows.


def entropy(z: Tensor, shows: bool) -> Tensor:
    return F.softplus(-z if shows else z)


def focal(z: Tensor, shows: bool) -> Tensor:
    cost = entropy(z, shows)
    return 2 * (1 - (-cost).exp()) ** 2 * cost


def asymmetric(z: Tensor, shows: bool) -> Tensor:
    p_m = (z.sigmoid() - 0.05).clamp(min=0)
    return -z.sigmoid().log() if shows else -(p_m.detach() ** 4) * (1 - p_m).log()


def balanced_asymmetric(z: Tensor, shows: bool, label: int) -> Tensor:
    p_m, weight = (z.sigmoid() - 0.05).clamp(min=0), (COUNTED.min() / COUNTED[label]) ** 1.6
    positive = (0.9 * shows + 0.1 / CLASSES) * (1 + weight) * z.sigmoid().log()
    return -positive if shows else -(p_m**9.8) * (positive + (1 - p_m).log())


def class_balanced(z: Tensor, shows: bool, shown: Sequence[int]) -> Tensor:
    weight = 0.1 / (1 - 0.9**COUNTED)
    return focal(z, shows) * float(weight[list(shown)].mean() if shown else weight.mean())


def rebalanced(label: int, shown: Sequence[int]) -> float:
    total = sum(1 / COUNTED[other] for other in shown)
    return 0.1 + (1 / (1 + np.exp(-10 * (1 / COUNTED[label] / total - 0.2))) if shown else 1.0)


def distribution_balanced(z: Tensor, shows: bool, label: int, shown: Sequence[int]) -> Tensor:
    shifted, scale = z - 0.05 / 2 * np.log(NUM_IMAGES / COUNTED[label] - 1), 1 if shows else 2
    return rebalanced(label, shown) / scale * focal(scale * shifted, shows)


def db_star(z: Tensor, shows: bool, label: int, shown: Sequence[int]) -> Tensor:
    shifted, scale = z - 0.05 * np.log(NUM_IMAGES / COUNTED[label] - 1), COUNTED[label] / COUNTED.max()
    return rebalanced(label, shown) * (F.softplus(-scale * shifted) if shows else F.softplus(2 * shifted) / 2)


def ldam(z: Tensor, shows: bool, label: int) -> Tensor:
    return entropy(z - shows * 0.5 * (COUNTED.min() / COUNTED[label]) ** 0.25, shows)


COSTS: dict[str, Callable[[Tensor, bool, int, Sequence[int]], Tensor]] = {
    "asymmetric": lambda z, shows, *_: asymmetric(z, shows),
    "distribution_balanced": distribution_balanced,
    "class_balanced_focal": lambda z, shows, _, shown: class_balanced(z, shows, shown),
    "focal": lambda z, shows, *_: focal(z, shows),
    "reweighted": lambda z, shows, label, _: entropy(z, shows) * float(np.sqrt(NUM_IMAGES / COUNTED[label])),
    "bce": lambda z, shows, *_: entropy(z, shows),
    "soft_margin": lambda z, shows, *_: entropy(z, shows),
    "db_star": db_star,
    "ldam": lambda z, shows, label, _: ldam(z, shows, label),
    "balanced_asymmetric": lambda z, shows, label, _: balanced_asymmetric(z, shows, label),
}


def mean_of_entries(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of a loss's costs of the entries that are left when the unknown ones are deleted."""
    costs = [
        COSTS[name](logits[image, label], bool(row[label] > 0), label, [j for j in range(CLASSES) if row[j] > 0])
        for image, row in enumerate(targets)
        for label in range(CLASSES)
        if not row[label].isnan()
    ]
    return torch.stack(costs).mean()


def two_way(logits: Tensor, targets: Tensor) -> Tensor:
    """The two-way loss of lists: of each image, and of each class, those entries that are left."""
    found = []
    for rows, labels in ((logits, targets), (logits.T, targets.T)):
        costs = []
        for row, own in zip(rows, labels, strict=True):
            positive, negative = row[own == 1], row[own == 0]
            if len(positive):
                hardest = negative.logsumexp(0) + 4 * (-positive / 4).logsumexp(0) if len(negative) else None
                costs.append(row.new_zeros(()) if hardest is None else F.softplus(hardest))
        found.append(torch.stack(costs).mean())
    return found[0] + found[1]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 0.6))
def test_a_loss_and_its_gradient_are_those_of_the_known_entries_alone(name: str, seed: int, share: float) -> None:
    logits, targets = batch(seed, share)
    targets[0, :2] = torch.tensor([0.0, 1.0])  # there is something to compare
    logits = logits.detach().nan_to_num(0.5).masked_fill(targets.isnan(), torch.nan).requires_grad_()
    found = built(name)(logits, targets)
    expected = two_way(logits, targets) if name == "two_way" else mean_of_entries(name, logits, targets)
    (gradient,) = torch.autograd.grad(found, logits)
    (by_hand,) = torch.autograd.grad(expected, logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    assert (gradient[targets.isnan()] == 0).all()
    assert torch.allclose(gradient, by_hand, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_a_model_says_of_unknown_entries_changes_nothing(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    logits, targets = batch(1)
    results = []
    for nonsense in (torch.nan, 1e4):
        values = logits.detach().masked_fill(targets.isnan(), nonsense).to(dtype).requires_grad_()
        loss = built(name, **options)(values, targets.to(dtype))
        (gradient,) = torch.autograd.grad(loss, values)
        assert torch.isfinite(gradient).all()
        assert (gradient[targets.isnan()] == 0).all()
        results.append((loss.item(), gradient))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_batch_of_which_nothing_is_known_costs_nothing(name: str, options: dict[str, Any]) -> None:
    logits = batch(0)[0].detach().requires_grad_()
    loss = built(name, **options)(logits, torch.full_like(logits, torch.nan))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("make", [
    lambda **how: DBStar(COUNTS, NUM_IMAGES, **how), lambda **how: DistributionBalancedLoss(COUNTS, NUM_IMAGES, **how),
    lambda **how: LDAMLoss(COUNTS, **how), lambda **how: BalancedAsymmetricLoss(COUNTS, **how),
    lambda **how: WeightedFocalLoss(2.0, 2.0, torch.ones(CLASSES), **how), AsymmetricLoss,
])  # fmt: skip
def test_sums_and_single_losses_leave_unknown_entries_out(make: Callable[..., nn.Module]) -> None:
    logits, targets = batch(2)
    known = ~targets.isnan()
    mean = make()(logits, targets).item()
    if make is AsymmetricLoss:
        assert make(reduction="sum")(logits, targets).item() == pytest.approx(mean * known.sum().item())
        return
    entries, filled = (make(reduction="none")(*pair) for pair in ((logits, targets), (logits, targets.nan_to_num(0))))
    assert (entries[~known] == 0).all()
    assert torch.equal(entries[known], filled[known])
    assert mean == pytest.approx(entries.sum().item() / known.sum().item())
