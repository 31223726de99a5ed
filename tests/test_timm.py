"""timm's models as encoders: their grid without prefix tokens, their own transform, weights without a network."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cprfl.config import validate
from cprfl.encoders.adapters import add_adapters
from cprfl.encoders.base import ImageEncoder, Resampling
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.timm import TimmEncoder
from cprfl.encoders.timm_library import timm_module
from cprfl.errors import ConfigError, WeightsError


def build(model: str, tmp_path: Path, **options: Any) -> TimmEncoder:
    return TimmEncoder.Config.model_validate({"model": model, "pretrained": "random", **options}).build(tmp_path)


MODELS = [  # name, settings, h and w, tokens that are no cells, whether channels come last
    ("test_vit", {}, 10, 1, False),
    ("test_vit", {"image_size": 96}, 6, 1, False),
    ("test_vit3", {}, 10, 1, False),
    ("deit_tiny_distilled_patch16_224", {"image_size": 64}, 4, 2, False),
    ("vit_small_patch16_dinov3", {"image_size": 64}, 4, 5, False),
    ("mixer_s32_224", {}, 7, 0, False),
    ("swin_tiny_patch4_window7_224", {"image_size": 64}, 2, 0, True),
    ("test_mambaout", {}, 5, 0, True),
    ("test_convnext", {}, 5, 0, False),
    ("test_resnet", {}, 5, 0, False),
    ("test_resnet", {"image_size": 97}, 4, 0, False),
    ("test_efficientnet", {}, 5, 0, False),
    ("test_byobnet", {}, 5, 0, False),
    ("test_nfnet", {}, 5, 0, False),
    ("test_coatnet", {}, 5, 0, False),
    ("test_maxvit", {}, 5, 0, False),
]


@pytest.mark.parametrize(("model", "options", "side", "prefix", "last"), MODELS)
def test_the_grid_is_what_the_model_gives_before_it_pools(
    tmp_path: Path, model: str, options: dict, side: int, prefix: int, last: bool
) -> None:
    encoder = build(model, tmp_path, **options)
    images = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    with torch.inference_mode():
        encoded, again = encoder(images), encoder(images)
        features = encoder.model.forward_features((images - encoder.mean) / encoder.std)
        pooled = encoder.model.forward_head(features, pre_logits=True)
    if features.ndim == 4:
        expected = features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
    else:
        expected = features[:, prefix:]
    assert encoded.grid_BVD.shape[1] == side * side
    assert torch.equal(encoded.grid_BVD, expected)
    assert torch.equal(encoded.global_BE, pooled)
    assert torch.equal(encoded.grid_BVD, again.grid_BVD)


def test_cells_lie_row_by_row(tmp_path: Path) -> None:
    """A change in one corner of the image is seen most in that corner's cell, whatever the layout of the features."""
    for model in ("test_vit", "test_mambaout", "test_resnet"):
        encoder = build(model, tmp_path)
        side, size = 10 if model == "test_vit" else 5, encoder.image_size
        plain = torch.full((1, 3, size, size), 0.5)
        changed = plain.clone()
        changed[:, :, : size // side, -(size // side) :] = 1.0
        difference = (encoder(changed).grid_BVD - encoder(plain).grid_BVD).abs().sum(dim=-1)[0]
        assert int(difference.argmax()) == side - 1, model


def test_random_weights_are_always_the_same_and_the_fingerprint_follows_what_matters(tmp_path: Path) -> None:
    def fingerprint(**options: Any) -> str:
        return build("test_resnet", tmp_path, **options).fingerprint()

    before = torch.get_rng_state()
    assert fingerprint() == fingerprint(batch_size=3, num_workers=2, max_pixels=5)
    assert torch.equal(torch.get_rng_state(), before)
    others: list[dict[str, Any]] = [
        {"image_size": 96}, {"resize": "crop"}, {"normalize": "none"}, {"value_range": [0, 1]},
        {"statistics": [[0.5] * 3, [0.2] * 3]},
    ]  # fmt: skip
    assert len({fingerprint(), *(fingerprint(**options) for options in others)}) == len(others) + 1
    encoder = build("test_resnet", tmp_path)
    next(encoder.parameters()).data.view(-1)[0] += 1
    assert encoder.fingerprint() != fingerprint()


def test_the_models_own_transform_is_used_unless_another_is_asked_for(tmp_path: Path) -> None:
    timm = timm_module()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    encoder = build("test_resnet", tmp_path, resize="crop")
    settings = timm.data.resolve_model_data_config(encoder.model)
    own = timm.data.create_transform(**settings, is_training=False)
    ours = (encoder.transform(image).float() / 255 - encoder.mean) / encoder.std
    assert torch.allclose(ours, own(image), atol=0.03)
    assert encoder.transform.own.crop == settings["crop_pct"] < 1
    assert encoder.transform.own.interpolation == "bilinear"
    other = build("test_resnet", tmp_path, normalize="clip")
    assert other.transform.own == Resampling()
    assert other.statistics[0][0] == pytest.approx(0.4815, abs=1e-4)


def saved(tmp_path: Path, name: str, **options: Any) -> Any:
    """A model of other random weights than ours, with its classifier."""
    torch.manual_seed(5)
    model = timm_module().create_model(name, **options).eval()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    return model


@pytest.mark.parametrize("model", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_weights_of_a_file_or_folder_load_with_or_without_a_classifier(tmp_path: Path, model: str) -> None:
    expected = saved(tmp_path, model, num_classes=7)
    state = expected.state_dict()
    encoder = build(model, tmp_path, pretrained=True, weights=str(tmp_path / "model.safetensors"))
    images = torch.rand(1, 3, encoder.image_size, encoder.image_size)
    with torch.inference_mode():
        features = expected.forward_features((images - encoder.mean) / encoder.std)
        assert torch.equal(encoder(images).global_BE, expected.forward_head(features, pre_logits=True))
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    own = {key: value.contiguous() for key, value in encoder.model.state_dict().items()}
    save_file(own, tmp_path / "headless.safetensors")
    for name in (".", "w.pth", "headless.safetensors"):
        again = build(model, tmp_path, pretrained=True, weights=str(tmp_path / name))
        assert again.fingerprint() == encoder.fingerprint(), name


def test_position_embeddings_are_interpolated_to_another_size(tmp_path: Path) -> None:
    expected = saved(tmp_path, "deit_tiny_patch16_224")
    encoder = build("deit_tiny_patch16_224", tmp_path, weights=str(tmp_path), image_size=64)
    assert encoder.model.pos_embed.shape[1] == 1 + 16
    assert torch.equal(encoder.model.blocks[0].norm1.weight, expected.blocks[0].norm1.weight)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "test_resnet")
    for model in ("test_vit", "test_convnext", "dla34"):  # timm itself lets dla's weights be missing
        with pytest.raises(WeightsError, match=f"does not fit {model}"):
            build(model, tmp_path, weights=str(tmp_path / "model.safetensors"))


def config_json(**changes: Any) -> str:
    statistics = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return json.dumps(
        {
            "architecture": "test_resnet",
            "num_classes": 1000,
            "pretrained_cfg": {"tag": "x", "input_size": [3, 160, 160], **statistics, **changes.pop("cfg", {})},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (config_json(architecture="resnet18"), "weights of resnet18, not of test_resnet"),
        (config_json(cfg={"mean": [0.4] * 3}), "set encoder.statistics: [[0.4, 0.4, 0.4], [0.5"),
        (config_json(cfg={"input_size": [3, 224, 224]}), "set encoder.image_size: 224"),
        (config_json(model_args={"stem_width": 9}), "arguments of its own ({'stem_width': 9})"),
        ('{"architectures": ["Dinov2Model"]}', "no configuration of timm's"),
        ("{", "no configuration of timm's"),
    ],
)
def test_a_folder_that_says_other_than_the_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    saved(tmp_path, "test_resnet")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError) as caught:
        build("test_resnet", tmp_path, weights=str(tmp_path))
    assert message in str(caught.value)


def test_a_folder_that_agrees_or_is_corrected_by_the_settings_is_read(tmp_path: Path) -> None:
    saved(tmp_path, "test_resnet")
    (tmp_path / "config.json").write_text(config_json())
    agreeing = build("test_resnet", tmp_path, weights=str(tmp_path))
    (tmp_path / "config.json").write_text(config_json(cfg={"mean": [0.4] * 3, "input_size": [3, 64, 64]}))
    settings = {"statistics": [[0.4] * 3, [0.5] * 3], "image_size": 64}
    corrected = build("test_resnet", tmp_path, weights=str(tmp_path), **settings)
    assert (agreeing.image_size, corrected.image_size, corrected.statistics[0]) == (160, 64, (0.4, 0.4, 0.4))
    assert torch.equal(agreeing.model.conv1[0].weight, corrected.model.conv1[0].weight)


def test_a_folder_without_one_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file of weights"):
        build("test_resnet", tmp_path, weights=str(tmp_path))
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="a.safetensors, b.safetensors; one is expected"):
        build("test_resnet", tmp_path, weights=str(tmp_path))


def test_an_encoder_without_its_weights_prepares_images_as_with_them(tmp_path: Path) -> None:
    saved(tmp_path, "test_resnet")
    config = TimmEncoder.Config(model="test_resnet", weights=str(tmp_path / "model.safetensors"))
    loaded, bare = config.build(tmp_path), config.build(tmp_path, loaded=False)
    assert loaded.transform_description == bare.transform_description
    bare.load_state_dict(loaded.state_dict())
    assert bare.fingerprint() == loaded.fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vit_smal_patch14_dinov2"}, "did you mean vit_small_patch14_dinov2"),
        ({"model": "resnet50", "pretrained": "a1_in1"}, "no pretrained tag 'a1_in1'; tags: .*a1_in1k"),
        ({"model": "pit_ti_224", "pretrained": "random"}, "no grid of several cells"),
        ({"model": "crossvit_9_240", "pretrained": "random"}, r"\(list\) are no grid"),
        ({"model": "vit_base_patch16_sapiens2", "pretrained": "random"}, "1024 x 768; set encoder.image_size"),
        ({"model": "test_byobnet", "pretrained": "random", "image_size": 1}, "no grid|takes no images of 1 pixels"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        TimmEncoder.Config.model_validate(settings).build(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet50.a1_in1k", "pretrained": "tv_in1k"}, "two tags"),
        ({"model": "resnet50", "pretrained": False}, "pretrained: random"),
        ({"model": "resnet50", "normalize": "clip", "statistics": [[0.5] * 3, [0.5] * 3]}, "contradict"),
        ({"model": "resnet50", "value_range": [1, 0]}, "black"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(TimmEncoder.Config, {"name": "timm", **settings}, source="encoder")


def test_without_a_network_it_ends_in_seconds_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"(?s)resnet18: weights 'resnet18'.*folder.*encoder.weights"):
        TimmEncoder.Config(model="resnet18").build(tmp_path)
    assert time.monotonic() - start < 20
    assert hub.HF_HUB_OFFLINE is False


ADAPTED = {"test_vit": 6, "test_convnext": 4, "test_resnet": 4, "test_efficientnet": 5, "test_mambaout": 4}


@pytest.mark.parametrize("model", ADAPTED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_begin_as_nothing_and_learn_with_and_without_checkpointing(
    tmp_path: Path, model: str, checkpointing: bool
) -> None:
    encoder, plain = build(model, tmp_path), build(model, tmp_path)
    add_adapters(encoder, 4)
    images = torch.rand(1, 3, encoder.image_size, encoder.image_size)
    assert encoder.adapters is not None
    assert len(encoder.adapters) == len(encoder.blocks()) == ADAPTED[model]
    if checkpointing:
        encoder.checkpoint_gradients()
    assert torch.allclose(encoder(images).grid_BVD, plain(images).grid_BVD, atol=1e-5)
    encoder(images).grid_BVD.square().sum().backward()
    gradients = [adapter.get_parameter("up.weight").grad for adapter in encoder.adapters]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def gradients(encoder: ImageEncoder, images: torch.Tensor) -> list[torch.Tensor]:
    used = [value for value in encoder.parameters() if value.requires_grad]
    found = torch.autograd.grad(encoder(images).grid_BVD.square().mean(), used, allow_unused=True)
    return [value for value in found if value is not None]


@pytest.mark.parametrize("model", [*ADAPTED, "test_nfnet", "test_byobnet", "test_maxvit"])
def test_checkpointing_changes_no_gradient(tmp_path: Path, model: str) -> None:
    encoder = build(model, tmp_path).requires_grad_(True)
    images = torch.rand(1, 3, encoder.image_size, encoder.image_size)
    before = gradients(encoder, images)
    encoder.checkpoint_gradients()
    after = gradients(encoder, images)
    assert len(before) == len(after) > 10
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(before, after, strict=True))


def test_a_model_without_blocks_takes_no_adapters(tmp_path: Path) -> None:
    encoder = build("densenet121", tmp_path, image_size=64)
    with pytest.raises(ConfigError, match="densenet121 has no blocks"):
        add_adapters(encoder, 4)
    with pytest.raises(ConfigError, match="gradient_checkpointing: densenet121 has no blocks"):
        encoder.checkpoint_gradients()


def test_timms_resnet_101_is_torchvisions_and_only_squeezenet_needs_torchvision(tmp_path: Path) -> None:
    ours = CnnEncoder.Config(model="resnet101", pretrained="random", image_size=64).build(tmp_path)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    state = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}  # as torchvision's files have them
    for key, value in ours.state_dict().items():
        number, _, rest = key.removeprefix("cnn.").partition(".")
        state[f"{names[int(number)]}.{rest}"] = value
    save_file(state, tmp_path / "w.safetensors")
    settings = {"weights": str(tmp_path / "w.safetensors"), "image_size": 64, "normalize": "imagenet"}
    theirs = build("resnet101.tv_in1k", tmp_path, **settings)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        a, b = ours(images), theirs(images)
    assert torch.equal(a.grid_BVD, b.grid_BVD)
    assert torch.equal(a.global_BE, b.global_BE)
    assert ours.transform_description == theirs.transform_description
    assert not timm_module().list_models("*squeezenet*")
