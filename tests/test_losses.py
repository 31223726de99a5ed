"""Losses against their formulas written out in NumPy, and what every one of them promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cprfl.errors import ShapeError
from cprfl.losses import (
    CONFIGS,
    LOSSES,
    AsymmetricLoss,
    BalancedAsymmetricLoss,
    CorrelationPenalty,
    DBStar,
    DistributionBalancedLoss,
    LDAMLoss,
    TwoWayLoss,
)
from tests.every_loss import CLASSES, COUNTED, COUNTS, IMAGES, NUM_IMAGES, VARIANTS, built


def batch(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits, float64, and targets; the first image shows nothing, all others the first class, none the last."""
    random = np.random.default_rng(seed)
    targets = (random.random((IMAGES, CLASSES)) < 0.4).astype(float)
    targets[:, 0], targets[:, -1], targets[0] = 1, 0, 0
    return torch.tensor(random.normal(size=targets.shape) * scale, requires_grad=True), torch.tensor(targets)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def share_weight(targets: np.ndarray, alpha: float, beta: float, gamma: float) -> np.ndarray:
    """The re-balancing weight of equation 11, entry by entry."""
    weight = np.empty_like(targets)
    for image, labels in enumerate(targets):
        total = sum(1 / n for n, shown in zip(COUNTED, labels, strict=True) if shown)
        for number, n in enumerate(COUNTED):
            weight[image, number] = alpha + (sigmoid(beta * (1 / n / total - gamma)) if total else 1.0)
    return weight


@pytest.mark.parametrize("pos_scale", [None, 5.0])
@pytest.mark.parametrize("focal", [False, True])
def test_db_star_is_equations_11_to_15(pos_scale: float | None, focal: bool) -> None:
    logits, targets = batch()
    loss = DBStar(COUNTS, NUM_IMAGES, 5.0, 0.07, 0.2, 8.0, 0.3, pos_scale, focal, 1.5, 3.0, reduction="none")
    score = logits.detach().numpy() - 0.07 * np.log(NUM_IMAGES / COUNTED - 1)
    scale = COUNTED / COUNTED.max() if pos_scale is None else pos_scale
    entropy = np.where(targets.numpy() > 0, softplus(-scale * score), softplus(5 * score))
    expected = share_weight(targets.numpy(), 0.2, 8.0, 0.3) * entropy / np.where(targets.numpy() > 0, 1, 5)
    if focal:
        expected = 3.0 * (1 - np.exp(-entropy)) ** 1.5 * expected
    found = loss(logits, targets)
    assert found.detach().numpy() == pytest.approx(expected, rel=1e-9)


def test_db_star_without_its_star_is_the_distribution_balanced_loss() -> None:
    logits, targets = batch()
    for focal in (False, True):
        plain = DistributionBalancedLoss(COUNTS, NUM_IMAGES, focal, neg_scale=5.0, init_bias=0.25)
        star = DBStar(COUNTS, NUM_IMAGES, neg_scale=5.0, init_bias=0.05, pos_scale=1.0, focal=focal)
        assert star(logits, targets).item() == pytest.approx(plain(logits, targets).item(), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ldam_takes_the_margin_from_positives_only(scale: float) -> None:
    logits, targets = batch()
    margin = COUNTED**-0.25 * 0.4 / (COUNTED**-0.25).max()
    score = logits.detach().numpy()
    expected = np.where(targets.numpy() > 0, softplus(-scale * (score - margin)), softplus(scale * score))
    assert LDAMLoss(COUNTS, 0.4, scale)(logits, targets).item() == pytest.approx(expected.mean(), rel=1e-9)
    assert LDAMLoss(COUNTS, 0.4).margin_C.max() == 0.4


def two_way(rows: np.ndarray, shown: np.ndarray, t_pos: float, t_neg: float) -> float:
    costs = []
    for row, labels in zip(rows, shown > 0, strict=True):
        if labels.all():
            costs.append(0.0)
        elif labels.any():
            negative = t_neg * np.log(np.exp(row[~labels] / t_neg).sum())
            positive = t_pos * np.log(np.exp(-row[labels] / t_pos).sum())
            costs.append(float(softplus(negative + positive)))
    return float(np.mean(costs))


@pytest.mark.parametrize("missing", ["positives", "negatives"])
def test_two_way_compares_within_images_and_within_classes(missing: str) -> None:
    logits, targets = batch()
    if missing == "negatives":  # of an image and of a class; as it is, both lack positives
        targets[1], targets[:, 0] = 1, 1
    z, y = logits.detach().numpy(), targets.numpy()
    for temperatures in ((4.0, 1.0), (2.0, 0.5)):
        expected = two_way(z, y, *temperatures) + two_way(z.T, y.T, *temperatures)
        assert TwoWayLoss(*temperatures)(logits, targets).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("filling", [0.0, 1.0])
def test_two_way_costs_nothing_where_there_is_nothing_to_compare(filling: float) -> None:
    logits, targets = batch()
    loss = TwoWayLoss()(logits, torch.full_like(targets, filling))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("divide_by_max", [False, True])
@pytest.mark.parametrize("gamma_pos", [0.0, 0.5])
def test_balanced_asymmetric_smooths_and_weighs_up_positives(gamma_pos: float, divide_by_max: bool) -> None:
    logits, targets = batch()
    loss = BalancedAsymmetricLoss(COUNTS, 9.8, gamma_pos, 0.05, 0.1, 1.35, divide_by_max, reduction="none")
    z, y = logits.detach().numpy(), targets.numpy()
    p = sigmoid(z / z.max() if divide_by_max else z)
    p_m = np.maximum(p - 0.05, 0)
    weight = (NUM_IMAGES / COUNTED) ** 1.35
    positive = (0.9 * y + 0.1 / CLASSES) * (1 + weight / weight.max()) * np.log(p)
    factor = np.where(y > 0, (1 - p) ** gamma_pos, p_m**9.8)
    expected = -factor * (positive + (1 - y) * np.log(1 - p_m))
    assert loss(logits, targets).detach().numpy() == pytest.approx(expected, rel=1e-9)


def test_balanced_asymmetric_without_balance_is_the_asymmetric_loss() -> None:
    logits, targets = batch()
    balanced = BalancedAsymmetricLoss(COUNTS[:1].repeat(CLASSES), 4.0, 1.0, label_smoothing=0.0, reduction="none")
    asymmetric = AsymmetricLoss(4.0, 1.0)
    expected = asymmetric.elementwise(logits, targets, 2 * targets)  # equal classes all have the largest weight, 1
    assert torch.allclose(balanced(logits, targets), expected)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_are_finite_at_extreme_logits(
    name: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    for seed in range(3):
        logits, targets = batch(seed)
        extreme = (1e4 * logits.detach().sign()).to(dtype)
        extreme[-1] = 0
        extreme.requires_grad_()
        loss = built(name, **settings)(extreme, targets.to(dtype))
        (gradient,) = torch.autograd.grad(loss, extreme)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["db_star", "ldam", "two_way", "balanced_asymmetric", "distribution_balanced"])
def test_half_precision_is_computed_in_float32(name: str) -> None:
    logits, targets = batch()
    half = logits.detach().bfloat16()
    loss = built(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(half, targets.bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(half.double(), targets).item(), rel=1e-5)


@pytest.mark.parametrize("make", [DBStar, DistributionBalancedLoss, LDAMLoss, BalancedAsymmetricLoss])
def test_without_reduction_there_is_a_loss_for_each_entry(make: Callable[..., nn.Module]) -> None:
    logits, targets = batch()
    counts = {"class_counts": COUNTS} | ({} if make in (LDAMLoss, BalancedAsymmetricLoss) else {"num_images": 60})
    entries = make(**counts, reduction="none")(logits, targets)
    assert entries.shape == targets.shape
    assert (entries >= 0).all()
    assert make(**counts)(logits, targets).item() == pytest.approx(entries.mean().item())


@pytest.mark.parametrize("name", LOSSES)
def test_raising_a_positive_or_lowering_a_negative_lowers_the_loss(name: str) -> None:
    settings = (
        {"label_smoothing": 0.0} if name == "balanced_asymmetric" else {}
    )  # a smoothed negative is a bit positive
    logits, targets = batch(scale=1.0)
    targets[:, 0], targets[:3, 0] = 1, 0  # a class without negatives has nothing to gain in the two-way loss
    (gradient,) = torch.autograd.grad(built(name, **settings)(logits, targets), logits)
    assert (gradient[targets > 0] < 0).all()
    assert (gradient[targets == 0] >= 0).all()
    assert (gradient[targets == 0] > 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_without_images_weighs_as_one_with_one(name: str) -> None:
    logits, targets = batch()
    losses = [CONFIGS[name](name=name).build(counts, NUM_IMAGES) for counts in (COUNTS, np.maximum(COUNTS, 1))]
    zero, one = (loss(logits, targets).item() for loss in losses)
    assert np.isfinite(zero)
    assert zero == one


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_that_every_image_shows_has_a_finite_loss(name: str) -> None:
    logits, targets = batch()
    assert torch.isfinite(CONFIGS[name](name=name).build(np.full(CLASSES, NUM_IMAGES), NUM_IMAGES)(logits, targets))


def test_settings_come_from_the_configuration() -> None:
    values = {"name": "db_star", "pos_scale": None, "map_gamma": 0.3}
    config = CONFIGS["db_star"].model_validate(values)
    assert CONFIGS["db_star"].model_validate(config.model_dump()) == config
    loss = config.build(COUNTS, NUM_IMAGES)
    assert isinstance(loss, DBStar)
    assert (loss.map_gamma, loss.neg_scale, loss.focal) == (0.3, 2.0, False)
    two = CONFIGS["two_way"](name="two_way")
    assert two.model_dump() == {"name": "two_way", "temperature_pos": 4.0, "temperature_neg": 1.0}
    for name, wrong in (("db_star", {"pos_scale": 0}), ("ldam", {"scale": 0}), ("two_way", {"temperature_pos": 0})):
        with pytest.raises(ValueError, match="greater than 0"):
            CONFIGS[name].model_validate(wrong)


def test_the_correlation_penalty_is_the_mean_over_pairs() -> None:
    logits, _ = batch()
    texts = np.random.default_rng(1).normal(size=(CLASSES, 9))
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    correlation = np.corrcoef(sigmoid(logits.detach().numpy()), rowvar=False)
    apart = ~np.eye(CLASSES, dtype=bool)
    expected = 0.7 * ((correlation - unit @ unit.T) ** 2)[apart].mean()
    penalty = CorrelationPenalty(torch.tensor(texts), 0.7)
    assert penalty(logits).item() == pytest.approx(expected, rel=1e-9)
    assert penalty(logits.float()).item() == pytest.approx(expected, rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert penalty(logits.float()).item() == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(penalty(logits), logits)
    assert penalty(logits - 0.01 * gradient / gradient.norm()).item() < expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_predictions_that_do_not_vary_add_nothing_to_the_correlation_penalty(dtype: torch.dtype) -> None:
    penalty = CorrelationPenalty(torch.randn(CLASSES, 9, generator=torch.Generator().manual_seed(0)), 1.0)
    logits = batch()[0].detach()
    same = logits.clone()
    same[:, 1:] = torch.tensor([0.1, 17.0, -17.0, 1e4, -1e4], dtype=same.dtype)  # one class varies: there is no pair
    for values, varied in ((logits[:1], False), (same, False), (1e4 * logits.sign(), True), (logits - 40, True)):
        inputs = values.to(dtype).requires_grad_()
        found = penalty(inputs)
        (gradient,) = torch.autograd.grad(found, inputs)
        assert torch.isfinite(found)
        assert torch.isfinite(gradient).all()
        assert varied or (found.item() == 0 and (gradient == 0).all())


def test_the_correlation_penalty_counts_pairs_without_correlation() -> None:
    texts, logits = torch.randn(CLASSES, 9, generator=torch.Generator().manual_seed(0)), batch()[0].detach()
    whole = CorrelationPenalty(texts[:-1], 1.0)(logits[:, :-1]).item() * (CLASSES - 1) * (CLASSES - 2)
    logits[:, -1] = 0.3
    penalty = CorrelationPenalty(texts, 1.0)
    assert penalty(logits).item() * CLASSES * (CLASSES - 1) == pytest.approx(whole, rel=1e-6)


def test_the_correlation_penalty_names_shapes_that_do_not_fit() -> None:
    penalty = CorrelationPenalty(torch.eye(3), 1.0)
    with pytest.raises(ShapeError, match=r"\[5, 4\].*\[images, 3\]"):
        penalty(torch.zeros(5, 4))
    assert CorrelationPenalty(torch.eye(1), 1.0)(torch.randn(5, 1)).item() == 0
