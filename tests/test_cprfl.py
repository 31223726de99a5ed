"""The fast head equals the plain one in every shape and with every option; the paper's ablations do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cprfl.models import CPRFL, interaction
from tests.helpers import facts_of
from tests.plain_cprfl import plain_logits

WAYS = ("project", "absorb_keys", "absorb")


def model(num_classes: int = 5, **options: Any) -> CPRFL:
    torch.manual_seed(0)
    sizes = {"dim": 24, "num_heads": 3, "head_dim": 8, "mlp_dim": 16, "dropout": 0.0} | options
    return CPRFL(CPRFL.Config.model_validate(sizes), facts_of(num_classes, grid_dim=10)).double()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 30), st.integers(1, 12), st.sampled_from([1, 2, 3]), st.booleans(), st.booleans()
)
def test_the_fast_head_and_all_its_gradients_equal_the_plain_one(
    batch: int, cells: int, classes: int, depth: int, residual: bool, linear: bool
) -> None:
    network = "linear" if linear else "nonlinear"
    head = model(classes, depth=depth, residual=residual, prompt_network=network)
    features = torch.randn(batch, cells, 10, dtype=torch.float64)
    for way in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interaction, "cheapest_way", lambda *_, way=way: way)
            fast = head(features)
        plain = plain_logits(head, features)
        assert torch.allclose(fast, plain, rtol=1e-9, atol=1e-12)
        parameters = list(head.parameters())
        pairs = zip(
            torch.autograd.grad(fast.square().sum(), parameters),
            torch.autograd.grad(plain.square().sum(), parameters),
            strict=True,
        )
        for ours, theirs in pairs:
            assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9 * float(theirs.abs().max()) + 1e-15)


@pytest.mark.parametrize("way", WAYS)
def test_half_precision_changes_rounding_only(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interaction, "cheapest_way", lambda *_: way)
    head, features = model(num_classes=6, depth=2).float(), torch.randn(3, 9, 10)
    gradients = {}
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = head(features)
        parts = torch.autograd.grad(logits.float().square().sum(), list(head.parameters()))
        assert {part.dtype for part in parts} == {torch.float32}
        gradients[half] = torch.cat([part.flatten() for part in parts])
    assert float((gradients[True] - gradients[False]).norm()) <= 0.02 * float(gradients[False].norm())


def test_the_two_gradient_paths_add_up_and_each_can_be_cut() -> None:
    features = torch.randn(3, 7, 10, dtype=torch.float64)
    gradients = {}
    for stop in ("none", "classifier", "interaction"):
        head = model(stop_gradient=stop)
        logits = head(features)
        (gradients[stop],) = torch.autograd.grad(logits.square().sum(), [head.get_parameter("prompt.3.weight")])
    assert torch.allclose(gradients["none"], gradients["classifier"] + gradients["interaction"])
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients.values())


def test_tau_is_the_prompt_network_s_hidden_width() -> None:
    assert len(model(tau=2.0).get_parameter("prompt.0.weight")) == 48
    assert isinstance(model(prompt_network="linear").prompt, torch.nn.Linear)


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((8, 196, 2048, 80, 512), "absorb"),
        ((8, 49, 2048, 80, 512), "absorb_keys"),
        ((32, 196, 768, 20, 96), "absorb"),
        ((8, 49, 512, 1000, 64), "project"),
    ],
)
def test_the_way_with_fewest_multiplications_is_chosen(shape: tuple[int, ...], way: str) -> None:
    assert interaction.cheapest_way(*shape) == way
