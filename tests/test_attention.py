"""Where a method looks: weights of the cells, as they pool, and where in the picture they lie."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

from cprfl.data.feature_store import FeatureStore
from cprfl.encoders.base import Resampling, Transform
from cprfl.experiment import load
from cprfl.inference.attention import attention_of, part_seen
from cprfl.inference.overlay import overlay
from cprfl.inference.predictor import Predictor
from cprfl.inference.streaming import ScoredImage, stream_scores
from cprfl.models import CPRFL, CSRA, HPDVAL, Ensemble, LinearProbe, Query2Label
from cprfl.models.base import Method
from cprfl.models.interaction import Block
from cprfl.preparation import prepare
from cprfl.recipe import train
from tests.every_method import CLASSES, METHODS, Images, facts, text_tower

LOOKING = {name for name in METHODS if name.startswith(("cprfl", "csra", "query2label", "label free", "hp-dval"))}


def built(config: object) -> Method:
    torch.manual_seed(0)
    needs_tower = config.needs_text_tower  # type: ignore[attr-defined]
    return config.build(facts(), text_tower() if needs_tower else None).eval()  # type: ignore[attr-defined]


@functools.cache
def some_images() -> tuple[Tensor, Tensor]:
    images = Images(6)
    return images.grid.float(), images.summary.float()


@pytest.mark.parametrize("name", METHODS)
def test_weights_of_every_method_are_shares_of_the_cells(name: str) -> None:
    method, (grid_BVD, global_BE) = built(METHODS[name]), some_images()
    with torch.inference_mode():
        before = method(grid_BVD, global_BE)
        weights_BCV = method.attention(grid_BVD, global_BE)
        assert torch.equal(method(grid_BVD, global_BE), before)
    if weights_BCV is None:
        assert name not in LOOKING or "released" in name  # whose 16 best cells are all four
        return
    assert weights_BCV.shape == (len(grid_BVD), CLASSES, grid_BVD.shape[1])
    assert (weights_BCV >= 0).all()
    assert torch.allclose(weights_BCV.sum(dim=2), torch.ones(()), atol=1e-5)
    assert weights_BCV.std() > 0


@pytest.mark.parametrize("depth", [1, 2])
def test_a_prompt_weighs_the_cells_as_the_published_block_does(depth: int) -> None:
    """The whole self-attention over [cells; prompts], written out, of which the prompts' rows count."""
    method = built(CPRFL.Config(dim=16, num_heads=2, head_dim=4, mlp_dim=16, depth=depth, residual=True))
    grid_BVD, global_BE = some_images()
    assert isinstance(method, CPRFL)
    with torch.inference_mode():
        prompts_CD = method.prompts()
        tokens = torch.cat([method.visual(grid_BVD), prompts_CD.expand(len(grid_BVD), -1, -1)], dim=1)
        for block in method.interaction.blocks:
            assert isinstance(block, Block)
            normed = block.attention_norm(tokens)
            query, key, value = (
                layer(normed).view(len(tokens), -1, 2, 4).transpose(1, 2)
                for layer in (block.to_query, block.to_key, block.to_value)
            )
            weights = (query @ key.transpose(2, 3) / 2).softmax(dim=3)
            tokens = tokens + block.to_out((weights @ value).transpose(1, 2).flatten(2))
            tokens = tokens + block.mlp(block.mlp_norm(tokens))
        to_cells = weights.mean(dim=1)[:, -CLASSES:, : grid_BVD.shape[1]]
        expected = to_cells / to_cells.sum(dim=2, keepdim=True)
        found = method.attention(grid_BVD, global_BE)
        logits = torch.einsum("bcd,cd->bc", tokens[:, -CLASSES:], prompts_CD)
        assert torch.allclose(method(grid_BVD, global_BE), logits, atol=1e-4)
    assert torch.allclose(found, expected, atol=1e-6)


def test_weights_stay_shares_where_prompts_attend_to_prompts_alone() -> None:
    method, (grid_BVD, global_BE) = built(METHODS["cprfl"]), some_images()
    assert isinstance(method, CPRFL)
    with torch.no_grad():
        block = method.interaction.blocks[0]
        assert isinstance(block, Block)
        block.to_query.weight *= 1e4
        weights_BCV = method.attention(grid_BVD, global_BE)
    assert torch.allclose(weights_BCV.sum(dim=2), torch.ones(()), atol=1e-5)


def test_queries_weigh_the_cells_as_the_last_layer_does() -> None:
    method = built(Query2Label.Config(dim=16, num_heads=2, mlp_dim=16, depth=2, dropout=0.0))
    grid_BVD, global_BE = some_images()
    seen: dict[str, Tensor] = {}
    last = method.layers[-1].multihead_attn  # type: ignore[union-attr,index]
    last.register_forward_pre_hook(lambda _, values: seen.update(query=values[0], cells=values[1]))
    with torch.no_grad():
        method.train()(grid_BVD, global_BE)
        query_weight, key_weight, _ = last.in_proj_weight.chunk(3)
        query_bias, key_bias, _ = last.in_proj_bias.chunk(3)
        query = (seen["query"] @ query_weight.T + query_bias).view(len(grid_BVD), CLASSES, 2, 8).transpose(1, 2)
        key = (seen["cells"] @ key_weight.T + key_bias).view(len(grid_BVD), -1, 2, 8).transpose(1, 2)
        expected = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=3).mean(dim=1)
        found = method.eval().attention(grid_BVD, global_BE)
        assert found is not None and torch.allclose(found, expected, atol=1e-5)


def test_scores_pooled_by_the_weights_are_what_the_method_adds_up() -> None:
    grid_BVD, global_BE = some_images()
    csra = built(CSRA.Config(num_heads=1, lam=1.0, standardize=False))
    assert isinstance(csra, CSRA)
    with torch.inference_mode():
        scores_BVC = grid_BVD @ torch.nn.functional.normalize(csra.weight_HCD[0], dim=1).T
        pooled = torch.einsum("bcv,bvc->bc", csra.attention(grid_BVD), scores_BVC)
        assert torch.allclose(csra(grid_BVD), scores_BVC.mean(dim=1) + pooled, atol=1e-5)

        dual = built(HPDVAL.Config(stage="alignment", top_k=2, alpha=0.0, logits="plain"))
        assert isinstance(dual, HPDVAL)
        cosine_BVC = torch.nn.functional.normalize(grid_BVD, dim=2) @ dual.template_CE.T
        weights_BCV = dual.attention(grid_BVD, global_BE)
        assert weights_BCV is not None
        pooled = torch.einsum("bcv,bvc->bc", weights_BCV, cosine_BVC)
        assert torch.allclose(dual(grid_BVD, global_BE), pooled, atol=1e-5)
    assert built(CSRA.Config(lam=0.0)).attention(grid_BVD, global_BE) is None
    assert built(HPDVAL.Config(stage="alignment", top_k=2, alpha=1.0)).attention(grid_BVD, global_BE) is None


def test_an_ensemble_looks_where_the_members_look_that_count() -> None:
    grid_BVD, global_BE = some_images()
    config = Ensemble.Config(members=[METHODS["cprfl"], LinearProbe.Config(), METHODS["csra"]])
    ensemble = built(config)
    assert isinstance(ensemble, Ensemble)
    cprfl, _, csra = ensemble.members
    assert isinstance(cprfl, CPRFL) and isinstance(csra, CSRA)
    with torch.inference_mode():
        ensemble.weight_M.copy_(torch.tensor([0.2, 5.0, 0.6]))
        of_csra = csra.attention(grid_BVD, global_BE)
        assert of_csra is not None
        expected = (cprfl.attention(grid_BVD, global_BE) + 3 * of_csra) / 4
        found = ensemble.attention(grid_BVD, global_BE)
        assert found is not None and torch.allclose(found, expected, atol=1e-6)
        ensemble.weight_M.copy_(torch.tensor([0.0, 1.0, 0.0]))
        assert ensemble.attention(grid_BVD, global_BE) is None


TRANSFORMS = {
    "squash": Transform(64, "squash"),
    "crop": Transform(64, "crop"),
    "crop of a larger one": Transform(64, "crop", own=Resampling("bilinear", 0.875)),
}


@settings(deadline=None, max_examples=40)
@given(st.integers(40, 400), st.integers(40, 400), st.sampled_from(sorted(TRANSFORMS)))
def test_the_part_seen_is_what_the_input_shows(width: int, height: int, name: str) -> None:
    """Along a ramp from black to white the input's edges tell where it was cut out."""
    transform, ramps = TRANSFORMS[name], np.empty((height, width, 3), dtype=np.uint8)
    ramps[..., 0], ramps[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    ramps[..., 2] = 0
    across, down, _ = transform(Image.fromarray(ramps)).float() / 255
    seen = part_seen(transform, width, height)
    edge = 2 / 64
    assert across[:, 0].mean().item() == pytest.approx(seen.left, abs=edge)
    assert across[:, -1].mean().item() == pytest.approx(seen.right, abs=edge)
    assert down[0].mean().item() == pytest.approx(seen.top, abs=edge)
    assert down[-1].mean().item() == pytest.approx(seen.bottom, abs=edge)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@pytest.mark.parametrize("corner", ["left top", "right top", "left bottom", "right bottom"])
@pytest.mark.parametrize("size", [(300, 200), (120, 260)])
def test_the_hue_lies_on_an_object_in_a_corner(name: str, corner: str, size: tuple[int, int]) -> None:
    transform, (width, height) = TRANSFORMS[name], size
    seen = part_seen(transform, width, height)
    side = 24
    x = (seen.left if "left" in corner else seen.right) * width - (0 if "left" in corner else side)
    y = (seen.top if "top" in corner else seen.bottom) * height - (0 if "top" in corner else side)
    image = Image.new("RGB", size, (60, 60, 60))
    ImageDraw.Draw(image).rectangle((x, y, x + side, y + side), fill=(250, 250, 250))
    cells = torch.nn.functional.adaptive_avg_pool2d(transform(image).float().mean(dim=0)[None], 8)[0]
    weights_HW = (cells - cells.min()).div((cells - cells.min()).sum()).numpy()
    drawn = np.asarray(overlay(image, weights_HW, seen), dtype=int)
    assert drawn.shape == (height, width, 3)
    hue = drawn[..., 0] - drawn[..., 2]
    found_y, found_x = np.argwhere(hue > 0.8 * hue.max()).mean(axis=0)
    assert abs(found_x - (x + side / 2)) < 0.75 * side
    assert abs(found_y - (y + side / 2)) < 0.75 * side


def test_a_picture_is_grey_where_nothing_stands_out_and_dark_where_nobody_looked() -> None:
    image = Image.new("RGB", (80, 40), (200, 100, 50))
    seen = part_seen(TRANSFORMS["crop"], 80, 40)
    alike = np.asarray(overlay(image, np.full((4, 4), 1 / 16, dtype=np.float32), seen), dtype=int)
    one = np.zeros((4, 4), dtype=np.float32)
    one[0, 0] = 1
    peak = np.asarray(overlay(image, one, seen), dtype=int)
    assert (alike[20, 40] - alike[20, 40].min()).max() < (peak[2, 22] - peak[2, 22].min()).max() / 2
    assert len(set(peak[20, 5].tolist())) == 1
    assert peak[20, 5, 0] < peak[35, 55, 0]


def test_cached_features_and_the_image_itself_show_the_same(small_config: Path) -> None:
    experiment = load(small_config, ["encoder.resize=crop"])
    prepared = prepare(experiment)
    checkpoint = train(experiment, prepared)
    assert isinstance(prepared.store, FeatureStore)
    ids, uris = prepared.manifest.image_ids[5:0:-1], prepared.manifest.uris[5:0:-1]
    cached = attention_of(checkpoint, prepared.store, ids)
    assert cached is not None
    (batch,) = stream_scores(Predictor.load(checkpoint), uris, looks=True)
    for image, weights_CHW in zip(batch, cached, strict=True):
        assert isinstance(image, ScoredImage)
        assert image.look is not None
        assert np.allclose(image.look.weights_CHW, weights_CHW, atol=1e-4)
        assert image.look.seen.left == pytest.approx(1 / 8, abs=0.01)
        assert image.look.picture.size == (64, 48)
    assert np.allclose(cached.sum(axis=(2, 3)), 1, atol=1e-5)
