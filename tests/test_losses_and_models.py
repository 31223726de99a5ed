"""Losses and models against the published implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cprfl.errors import CheckpointError, ShapeError
from cprfl.losses import CONFIGS, AsymmetricLoss, DistributionBalancedLoss
from cprfl.losses.focal import class_balanced_focal, focal, reweighted
from cprfl.models import CPRFL, LinearProbe, interaction
from cprfl.models.base import Standardize, feature_statistics
from cprfl.models.cprfl import _PUBLISHED
from tests.helpers import facts_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.detach().double() - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_asymmetric_loss_and_its_gradient_are_the_published_ones(shared: Path, case: int, dtype: torch.dtype) -> None:
    golden = np.load(shared / "golden" / "asymmetric_loss.npz")
    gamma_neg, gamma_pos, clip, detach = golden[f"case{case}:gamma_neg,gamma_pos,clip,detach_focal_weight"].tolist()
    logits = torch.from_numpy(golden["logits"]).to(dtype).requires_grad_()
    targets = torch.from_numpy(golden["targets"]).to(dtype)
    loss = AsymmetricLoss(gamma_neg, gamma_pos, clip, bool(detach))(logits, targets)
    loss.backward()
    assert loss.item() == pytest.approx(float(golden[f"case{case}:loss_mean"]), rel=TOLERANCE[dtype])
    assert logits.grad is not None
    reference = torch.from_numpy(golden[f"case{case}:grad_of_mean"])
    assert relative_error(logits.grad, reference) < TOLERANCE[dtype]
    total = AsymmetricLoss(gamma_neg, gamma_pos, clip, bool(detach), reduction="sum")(logits, targets)
    assert total.item() == pytest.approx(loss.item() * logits.numel(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("clip", [0.0, 1e-8, 0.05])
def test_asymmetric_loss_is_finite_at_extreme_logits(dtype: torch.dtype, detach: bool, clip: float) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 30.0, -30.0]]).to(dtype).requires_grad_()
    for targets in (torch.zeros(1, 5), torch.ones(1, 5)):
        loss = AsymmetricLoss(4.0, 1.0, clip, detach)(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def published_loss(case: str, counts: np.ndarray, num_images: int) -> nn.Module:
    voc: dict[str, Any] = {"neg_scale": 5.0, "map_gamma": 0.3}
    coco: dict[str, Any] = {"neg_scale": 2.0, "map_gamma": 0.2}
    losses: dict[str, nn.Module] = {
        "db_focal_voc": DistributionBalancedLoss(counts, num_images, **voc, reduction="none"),
        "db_focal_coco": DistributionBalancedLoss(counts, num_images, **coco, reduction="none"),
        "db_nofocal_voc": DistributionBalancedLoss(counts, num_images, focal=False, **voc, reduction="none"),
        "cb_focal": class_balanced_focal(counts),
        "focal": focal(),
        "rw_sqrt": reweighted(counts, num_images),
    }
    return losses[case]


@pytest.mark.parametrize("case", ["db_focal_voc", "db_focal_coco", "db_nofocal_voc", "cb_focal", "focal", "rw_sqrt"])
def test_losses_by_class_counts_are_the_published_ones(shared: Path, case: str) -> None:
    golden = np.load(shared / "golden" / "distribution_balanced_loss.npz")
    logits, targets = (torch.from_numpy(golden[name]) for name in ("logits", "targets"))
    logits.requires_grad_()
    loss = published_loss(case, golden["class_counts"], int(golden["num_images"]))
    loss.reduction = "none"  # type: ignore[assignment]
    elementwise = loss(logits, targets)
    if f"{case}/loss_elementwise" in golden:
        reference = torch.from_numpy(golden[f"{case}/loss_elementwise"]).double()
        assert relative_error(elementwise, reference) < 1e-6
    assert elementwise.mean().item() == pytest.approx(float(golden[f"{case}/loss_mean"]), rel=1e-6)
    elementwise.mean().backward()
    assert logits.grad is not None
    assert relative_error(logits.grad, torch.from_numpy(golden[f"{case}/grad_of_mean"])) < 1e-6


def test_losses_by_class_counts_take_images_without_labels_and_classes_without_images() -> None:
    targets = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    for name in ("distribution_balanced", "class_balanced_focal", "reweighted"):
        config = CONFIGS[name](name=name)
        logits = torch.randn(2, 2, requires_grad=True)
        for counts in ([5, 2], [5, 0]):
            loss = config.build(np.array(counts), 7)(logits, targets)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()
        as_one = config.build(np.array([5, 1]), 7)(logits, targets)
        assert loss.item() == as_one.item()


def test_a_loss_s_settings_are_its_constructor_s_parameters() -> None:
    config = CONFIGS["distribution_balanced"]
    assert set(config.model_fields) == {
        "name", "focal", "neg_scale", "init_bias", "map_alpha", "map_beta", "map_gamma", "gamma", "balance",
    }  # fmt: skip
    loss = config.model_validate({"map_gamma": 0.3}).build(np.array([5, 2]), 7)
    assert isinstance(loss, DistributionBalancedLoss)
    assert (loss.map_gamma, loss.map_beta) == (0.3, 10.0)
    assert CONFIGS["asymmetric"](name="asymmetric").model_dump() == {
        "name": "asymmetric", "gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05, "detach_focal_weight": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match="less than 1"):
        CONFIGS["asymmetric"].model_validate({"clip": 2})


def test_soft_margin_and_cross_entropy_are_torch_s() -> None:
    logits, targets = torch.randn(4, 3), torch.randint(2, (4, 3)).float()
    counts = np.array([1, 1, 1])
    values = [CONFIGS[name](name=name).build(counts, 4)(logits, targets).item() for name in ("bce", "soft_margin")]
    reference = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets).item()
    assert values == pytest.approx([reference, reference])


@pytest.mark.parametrize("way", ["project", "absorb_keys", "absorb"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cprfl_is_the_published_model_forwards_and_backwards(
    shared: Path, monkeypatch: pytest.MonkeyPatch, way: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(interaction, "cheapest_way", lambda *_: way)
    golden = {name: torch.from_numpy(value) for name, value in np.load(shared / "golden" / "cprfl_head.npz").items()}
    state = {k.removeprefix("state_dict/"): v.to(dtype) for k, v in golden.items() if k.startswith("state_dict/")}
    model = CPRFL.from_published(
        {f"module.{name}": value for name, value in state.items()} | {"module.Backbone.0.weight": torch.zeros(1)},
        golden["text_embeddings"].to(dtype),
        num_heads=int(golden["num_heads"]),
    ).eval()
    features = golden["features"].to(dtype)
    prompts = model.prompts()
    logits = model(features)
    loss = AsymmetricLoss()(logits, golden["targets"])
    loss.backward()
    tolerance = TOLERANCE[dtype]
    assert relative_error(prompts, golden["prompts"]) < tolerance
    assert relative_error(model.category_features(features, prompts), golden["category_features"]) < tolerance
    assert relative_error(logits, golden["logits"]) < tolerance
    assert loss.item() == pytest.approx(float(golden["asl_mean"]), rel=tolerance)
    compared = 0
    fused = golden.pop("grad/attention.layers.0.0.fn.to_qkv.weight").chunk(3)
    for part, reference in zip(("query", "key", "value"), fused, strict=True):
        golden[f"grad/attention.layers.0.0.fn.to_{part}.weight"] = reference
    for name, parameter in model.named_parameters():
        ours = next(prefix for prefix in _PUBLISHED if name.startswith(prefix))
        reference = golden[f"grad/{_PUBLISHED[ours]}{name.removeprefix(ours)}"]
        assert parameter.grad is not None
        assert relative_error(parameter.grad, reference) < tolerance, name
        compared += 1
    assert compared == len(state) + 2  # queries, keys and values are one weight there


def test_a_checkpoint_that_is_none_is_refused() -> None:
    with pytest.raises(CheckpointError, match="unknown weights \\['head.weight'\\]"):
        CPRFL.from_published({"head.weight": torch.zeros(2, 2)}, torch.zeros(3, 4))


@pytest.mark.parametrize("config", [CPRFL.Config(dim=16, num_heads=2, head_dim=4), LinearProbe.Config()])
def test_features_of_another_encoder_name_both_shapes(config: CPRFL.Config | LinearProbe.Config) -> None:
    model = config.build(facts_of())
    assert model(torch.randn(3, 7, 8)).shape == (3, 5)
    with pytest.raises(ShapeError, match=r"\[3, 7, 9\].*\[images, cells, 8\]"):
        model(torch.randn(3, 7, 9))


def test_standardisation_uses_the_statistics_of_the_training_grids() -> None:
    grids = torch.randn(50, 9, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    grids[..., 0] = 7.0  # a constant channel
    mean, std = feature_statistics(grids.split(2))
    standardized = Standardize(mean, std)(grids).reshape(-1, 4)
    assert torch.allclose(standardized.mean(dim=0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(standardized[:, 1:].std(dim=0), torch.ones(3), atol=1e-2)
