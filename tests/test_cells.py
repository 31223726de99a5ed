"""How cells attend, and how they come into the joint space."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cprfl.config import validate
from cprfl.encoders.adapters import add_adapters
from cprfl.encoders.clip import OpenClipEncoder
from cprfl.encoders.clip.library import open_clip_module
from cprfl.errors import ConfigError, WeightsError

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TINY = {
    "tiny-test-vit": {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8},
    "tiny-test-clipa": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8,
                        "pool_type": "avg", "final_ln_after_pool": True},
    "tiny-test-coca": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8,
                       "attentional_pool": True, "attn_pooler_heads": 4},
    "tiny-test-custom": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8,
                         "block_type": "custom"},
    "tiny-test-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "tiny-test-convnext": {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "",
                           "timm_proj": "linear", "image_size": 64},
    "tiny-test-gap": {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "avg",
                      "timm_proj": "linear", "image_size": 160},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small relatives of published towers among open_clip's models."""
    open_clip = open_clip_module()
    for name, vision in TINY.items():
        path = tmp_path_factory.mktemp("models") / f"{name}.json"
        path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}))
        open_clip.add_model_config(path)


def tower(model: str, tmp_path: Path, **options: Any) -> OpenClipEncoder:
    encoder = OpenClipEncoder.Config.model_validate({"model": model, "pretrained": "random", **options}).build(tmp_path)
    torch.manual_seed(1)  # norms and biases start at one and zero, which would hide what they do
    for name, value in encoder.visual.named_parameters():
        if value.ndim == 1 and "embedding" not in name:
            value.data.add_(0.3 * torch.randn_like(value))
    return encoder


def images_of(encoder: OpenClipEncoder, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, encoder.image_size, encoder.image_size, generator=generator)


def last_block(encoder: OpenClipEncoder, images: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The last block and the tokens that it is given."""
    block, seen = encoder.blocks()[-1], []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(images)
    handle.remove()
    return block, seen[0]


def similar_cells(block: Any, tokens_BND: torch.Tensor) -> torch.Tensor:
    """SCLIP's last block, head by head and token by token."""
    attn, normed = block.attn, block.ln_1(tokens_BND)
    width, size = attn.embed_dim, attn.embed_dim // attn.num_heads
    weights, biases = attn.in_proj_weight.split(width), attn.in_proj_bias.split(width)
    q, k, v = (normed @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    heads = []
    for head in range(attn.num_heads):
        own = slice(head * size, (head + 1) * size)
        by_query = (q[..., own] @ q[..., own].transpose(1, 2) / size**0.5).softmax(dim=-1)
        by_key = (k[..., own] @ k[..., own].transpose(1, 2) / size**0.5).softmax(dim=-1)
        heads.append((by_query + by_key) @ v[..., own])
    x = tokens_BND + block.ls_1(torch.cat(heads, dim=-1) @ attn.out_proj.weight.T + attn.out_proj.bias)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


@pytest.mark.parametrize("project", [False, True])
@torch.inference_mode()
def test_cells_attend_by_similarity_and_the_summary_stays(tiny_models: None, tmp_path: Path, project: bool) -> None:
    own = tower("tiny-test-vit", tmp_path, project=project)
    state = torch.random.get_rng_state()
    encoder = tower("tiny-test-vit", tmp_path, project=project, attention="similarity")
    assert torch.equal(state, torch.random.get_rng_state())
    images = images_of(own)
    found, before = encoder(images), own(images)
    block, tokens = last_block(own, images)
    cells = own.visual.ln_post(similar_cells(block, tokens))[:, 1:]
    assert torch.allclose(found.grid_BVD, cells @ own.visual.proj if project else cells, atol=1e-5)
    assert torch.allclose(found.global_BE, before.global_BE, atol=1e-6)
    assert not torch.allclose(found.grid_BVD, before.grid_BVD, atol=1e-2)
    assert encoder.state_dict().keys() == own.state_dict().keys()
    assert encoder.fingerprint() != own.fingerprint()
    assert torch.equal(copy.deepcopy(encoder)(images).grid_BVD, found.grid_BVD)


def test_similarity_goes_with_adapters_and_gradients(tiny_models: None, tmp_path: Path) -> None:
    encoder = tower("tiny-test-vit", tmp_path, attention="similarity")
    images = images_of(encoder)
    before = encoder(images)
    add_adapters(encoder, 4)
    assert torch.allclose(encoder(images).grid_BVD, before.grid_BVD, atol=1e-6)
    assert encoder.adapters is not None
    last = encoder.adapters[-1]
    torch.nn.init.normal_(last.get_parameter("up.weight"))
    block, tokens = last_block(encoder, images)
    with torch.no_grad():
        cells = encoder.visual.ln_post(similar_cells(block, tokens) + last(tokens))[:, 1:]
        assert torch.allclose(encoder(images).grid_BVD, cells, atol=1e-5)
    encoder.requires_grad_(True)
    encoder(images).grid_BVD.square().sum().backward()
    gradient = encoder.blocks()[-1].attn.in_proj_weight.grad  # type: ignore[union-attr]
    assert gradient is not None
    assert gradient.abs().sum() > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    "model", ["tiny-test-rn", "tiny-test-convnext", "tiny-test-gap", "tiny-test-clipa", "tiny-test-coca",
              "tiny-test-custom"]
)  # fmt: skip
def test_other_towers_do_not_attend_by_similarity(tiny_models: None, tmp_path: Path, model: str) -> None:
    with pytest.raises(WeightsError, match=f"{model}: .*vision transformer .*set encoder.attention: own"):
        tower(model, tmp_path, attention="similarity")
    with pytest.raises(ConfigError, match="attention: similarity needs layer -1"):
        validate(
            OpenClipEncoder.Config, {"name": "open_clip", "model": model, "attention": "similarity", "layer": -2},
            source="encoder",
        )  # fmt: skip


@torch.inference_mode()
def test_a_vits_cells_are_projected_as_its_class_token_is(tiny_models: None, tmp_path: Path) -> None:
    encoder = tower("tiny-test-vit", tmp_path, project=True)
    images = images_of(encoder)
    found = encoder(images)
    block, tokens = last_block(encoder, images)
    joint = encoder.visual.ln_post(block(tokens)) @ encoder.visual.proj
    assert torch.allclose(joint[:, 0], found.global_BE, atol=1e-5)
    assert torch.allclose(joint[:, 1:], found.grid_BVD, atol=1e-5)


@torch.inference_mode()
def test_a_resnets_cells_are_what_its_attention_pool_makes_of_one(tiny_models: None, tmp_path: Path) -> None:
    plain, encoder = (tower("tiny-test-rn", tmp_path, project=project) for project in (False, True))
    images, pool = images_of(encoder), encoder.visual.attnpool
    cells, joint = plain(images).grid_BVD, encoder(images).grid_BVD
    assert cells.shape[:2] == (2, 4)
    one = cells.reshape(1, -1, cells.shape[-1])  # a sequence of one token, many images
    expected, _ = F.multi_head_attention_forward(
        one, one, one, one.shape[-1], pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0, pool.c_proj.weight,
        pool.c_proj.bias, training=False, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    assert torch.allclose(expected.view_as(joint), joint, atol=1e-5)


@torch.inference_mode()
def test_cells_of_a_mean_are_projected_as_the_mean_is(tiny_models: None, tmp_path: Path) -> None:
    for model in ("cprfl-embedded", "tiny-test-gap"):  # without a norm between pooling and projection
        encoder = tower(model, tmp_path, project=True)
        encoded = encoder(images_of(encoder))
        assert encoded.grid_BVD.shape[1] > 1
        assert torch.allclose(encoded.grid_BVD.mean(dim=1), encoded.global_BE, atol=1e-5)
    encoder = tower("tiny-test-convnext", tmp_path, project=True)
    images = images_of(encoder)
    encoded = encoder(images)
    assert encoded.grid_BVD.shape[1] == 4
    # With such a norm a cell goes through it: an image of a single cell is that cell.
    assert not torch.allclose(encoded.grid_BVD.mean(dim=1), encoded.global_BE, atol=1e-3)
    small = encoder(images[:, :, :32, :32])
    assert small.grid_BVD.shape[1] == 1
    assert torch.allclose(small.grid_BVD[:, 0], small.global_BE, atol=1e-5)


def test_cocas_cells_are_given_and_not_projected(tiny_models: None, tmp_path: Path) -> None:
    encoder = tower("tiny-test-coca", tmp_path)
    images = images_of(encoder)
    with torch.inference_mode():
        encoded = encoder(images)
        assert encoded.grid_BVD.shape == (2, 16, 32)
        assert torch.allclose(encoded.global_BE, encoder.visual((images - encoder.mean) / encoder.std), atol=1e-5)
    with pytest.raises(WeightsError, match="no projection of single cells; set project: false"):
        tower("tiny-test-coca", tmp_path, project=True)
