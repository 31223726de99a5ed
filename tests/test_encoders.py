"""Encoders: the shapes of the grid before pooling, text embeddings, weights that are missing or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cprfl.encoders.adapters import add_adapters
from cprfl.encoders.base import STATISTICS, ImageEncoderConfig
from cprfl.encoders.clip import OpenClipEncoder, create_clip
from cprfl.encoders.clip.statistics import own_statistics
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.text import GloveText, NpzText, OpenClipText, RandomText, TextEmbeddings
from cprfl.encoders.weights import load_weights
from cprfl.errors import ClassNamesError, TextEmbeddingsError, WeightsError
from cprfl.torchvision_cpu import _nms, ensure_torchvision

NAMES = ("person", "traffic light", "cat")


@pytest.mark.parametrize(
    ("model", "options", "grid", "pooled"),
    [
        ("RN50", {}, [49, 2048], 1024),
        ("RN50", {"project": True}, [49, 1024], 1024),
        ("RN50", {"image_size": 256}, [64, 2048], 1024),
        ("ViT-B-16", {}, [196, 768], 512),
        ("ViT-B-16", {"project": True}, [196, 512], 512),
        ("ViT-B-16", {"layer": -2, "pool": 7}, [49, 768], 512),
        ("cprfl-embedded", {"layer": -2}, [36, 192], 64),
        ("cprfl-embedded", {"project": True}, [9, 64], 64),
    ],
)
def test_open_clip_towers_give_grids_before_pooling(
    tmp_path: Path, model: str, options: dict, grid: list[int], pooled: int
) -> None:
    encoder = OpenClipEncoder.Config(model=model, pretrained="random", **options).build(tmp_path)
    images = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    with torch.inference_mode():
        encoded = encoder(images)
    assert list(encoded.grid_BVD.shape) == [2, *grid]
    assert list(encoded.global_BE.shape) == [2, pooled]
    if options.get("image_size") is None:
        with torch.inference_mode():
            expected = encoder.visual((images - encoder.mean) / encoder.std)
        assert torch.allclose(encoded.global_BE, expected, atol=1e-5)


def test_the_projected_cells_of_a_pooled_average_meet_the_towers_embedding(tmp_path: Path) -> None:
    encoder = OpenClipEncoder.Config(model="cprfl-embedded", pretrained="random", project=True).build(tmp_path)
    encoded = encoder(torch.rand(2, 3, 96, 96))
    assert torch.allclose(encoded.grid_BVD.mean(dim=1), encoded.global_BE, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "grid"), [("resnet50", [49, 2048]), ("resnet101", [49, 2048]), ("squeezenet1_1", [169, 512])]
)
def test_cnns_give_grids_before_pooling(tmp_path: Path, model: str, grid: list[int]) -> None:
    encoder = CnnEncoder.Config(model=model, pretrained="random").build(tmp_path)
    with torch.inference_mode():
        encoded = encoder(torch.rand(1, 3, 224, 224))
    assert list(encoded.grid_BVD.shape) == [1, *grid]
    assert torch.allclose(encoded.global_BE, encoded.grid_BVD.mean(dim=1), atol=1e-5)


def test_the_fingerprint_follows_weights_and_transform_but_not_the_batch_size(tmp_path: Path) -> None:
    def fingerprint(**options: object) -> str:
        settings = {"model": "squeezenet1_1", "pretrained": "random"} | options
        return CnnEncoder.Config.model_validate(settings).build(tmp_path).fingerprint()

    assert fingerprint() == fingerprint(batch_size=3)
    assert len({fingerprint(), fingerprint(image_size=96), fingerprint(resize="crop"), fingerprint(views=2)}) == 4
    encoder = CnnEncoder.Config(model="squeezenet1_1", pretrained="random").build(tmp_path)
    before = encoder.fingerprint()
    next(encoder.parameters()).data[0, 0, 0, 0] += 1
    assert encoder.fingerprint() != before


def test_real_squeezenet_weights_load_and_a_wrong_file_is_refused(shared: Path, tmp_path: Path) -> None:
    weights = shared / "data" / "weights" / "squeezenet1_1_imagenet.safetensors"
    CnnEncoder.Config(model="squeezenet1_1", weights=str(weights)).build(tmp_path)
    with pytest.raises(WeightsError, match="does not fit resnet50"):
        CnnEncoder.Config(model="resnet50", weights=str(weights)).build(tmp_path)


def test_weights_that_cannot_be_had_say_where_to_put_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(WeightsError, match=r"(?s)RN50: weights 'yfcc15m'.*put the .safetensors.*encoder.weights"):
        create_clip("RN50", "yfcc15m", None, tmp_path)
    with pytest.raises(WeightsError, match=r"(?s)resnet50: weights 'IMAGENET1K_V1'.*encoder.weights"):
        CnnEncoder.Config(model="resnet50").build(tmp_path)
    with pytest.raises(WeightsError, match="no pretrained tag 'opnai'; tags: openai"):
        create_clip("RN50", "opnai", None, tmp_path)
    with pytest.raises(WeightsError, match="no such open_clip model"):
        create_clip("RN5", "openai", None, tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("unpickled",)

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="without unpickling"):
        CnnEncoder.Config(model="squeezenet1_1", weights=str(tmp_path / "evil.pt")).build(tmp_path)


def test_open_clip_weights_from_a_local_file(tmp_path: Path) -> None:
    clip = create_clip("cprfl-embedded", "random", None, tmp_path)
    next(clip.parameters()).data += 1
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    loaded = create_clip("cprfl-embedded", "openai", str(tmp_path / "clip.safetensors"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(WeightsError, match="does not fit RN50"):
        create_clip("RN50", "openai", str(tmp_path / "clip.safetensors"), tmp_path)


def clip_folder(folder: Path, **preprocess: object) -> str:
    """A folder as that of a Hugging Face repository of open_clip's, with an embedded model's weights."""
    folder.mkdir()
    save_file(
        create_clip("cprfl-embedded", "random", None, folder).state_dict(), folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": preprocess}))
    return str(folder)


def test_open_clip_weights_from_a_repositorys_folder(tmp_path: Path) -> None:
    clip = {"mean": STATISTICS["clip"][0], "std": STATISTICS["clip"][1]}
    plain = OpenClipEncoder.Config(model="cprfl-embedded", pretrained="random").build(tmp_path)
    same = clip_folder(tmp_path / "same", **clip)
    assert OpenClipEncoder.Config(model="cprfl-embedded", weights=same).build(tmp_path).fingerprint() == (
        plain.fingerprint()
    )
    text = OpenClipText(model="cprfl-embedded", weights=same).embed(NAMES, tmp_path)
    expected = OpenClipText(model="cprfl-embedded", pretrained="random").embed(NAMES, tmp_path)
    assert torch.equal(text.embeddings_CM, expected.embeddings_CM)
    other = clip_folder(tmp_path / "other", mean=[0.5] * 3, std=[0.4] * 3)
    with pytest.raises(WeightsError, match=r"encoder.statistics: \[\[0.5, 0.5, 0.5\], \[0.4"):
        OpenClipEncoder.Config(model="cprfl-embedded", weights=other).build(tmp_path)
    said = OpenClipEncoder.Config(model="cprfl-embedded", weights=other, statistics=((0.5,) * 3, (0.4,) * 3))
    assert said.build(tmp_path).mean.flatten().tolist() == [0.5, 0.5, 0.5]
    (tmp_path / "other" / "open_clip_config.json").write_text("{")
    with pytest.raises(WeightsError, match="no configuration of open_clip's"):
        OpenClipEncoder.Config(model="cprfl-embedded", weights=other).build(tmp_path)


def test_colour_statistics_are_those_of_the_weights_wherever_these_come_from() -> None:
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert own_statistics("ViT-B-16-SigLIP", "webli", None) == half
    assert own_statistics("ViT-B-16-SigLIP", "openai", "w.safetensors") == half  # what all of its tags have
    assert own_statistics("ViT-L-14", "laion2b_s32b_b82k", "w.safetensors") == half
    assert own_statistics("ViT-L-14", "openai", "w.safetensors") == STATISTICS["clip"]
    with pytest.raises(WeightsError, match="colour statistics of ViT-L-14 differ; set encoder.pretrained"):
        own_statistics("ViT-L-14", "mine", "w.safetensors")


def test_an_encoder_without_its_weights_prepares_images_as_with_them(tmp_path: Path) -> None:
    configs = (
        OpenClipEncoder.Config(model="ViT-B-32", pretrained="laion2b_e16", weights="no.file", image_size=32),
        CnnEncoder.Config(model="squeezenet1_1", weights="no.file", normalize="clip"),
    )
    for config in configs:
        bare = config.build(tmp_path, loaded=False)
        random = config.model_copy(update={"pretrained": "random", "weights": None}).build(tmp_path)
        assert bare.fingerprint() == random.fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"state_dict": {"epoch": 3}}, "no tensors by name"), (torch.zeros(3), "no tensors by name")],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights(str(tmp_path / "w.pt"))


@pytest.mark.parametrize("model", ["squeezenet", "CLIP's ResNet", "CLIP's ViT", "timm's ResNet in CLIP"])
def test_adapters_learn_under_gradient_checkpointing(tmp_path: Path, model: str) -> None:
    """The libraries' own checkpointing goes past the hooks of stages, and the adapters with them."""
    torch.manual_seed(0)  # four drawn units may all be dead on so few cells
    config: ImageEncoderConfig = {
        "squeezenet": CnnEncoder.Config(model="squeezenet1_1", pretrained="random", image_size=64),
        "CLIP's ResNet": OpenClipEncoder.Config(model="RN50", pretrained="random"),
        "CLIP's ViT": OpenClipEncoder.Config(model="ViT-B-32", pretrained="random", image_size=32),
        "timm's ResNet in CLIP": OpenClipEncoder.Config(model="cprfl-embedded", pretrained="random"),
    }[model]
    encoder = config.build(tmp_path)
    add_adapters(encoder, 4)
    assert encoder.adapters is not None
    images = torch.rand(1, 3, encoder.image_size, encoder.image_size)
    found = []
    for _ in range(2):
        encoder.zero_grad()
        encoded = encoder(images)
        (encoded.grid_BVD.square().mean() + encoded.global_BE.square().mean()).backward()
        gradients = [adapter.get_parameter("up.weight").grad for adapter in encoder.adapters]
        found.append([gradient.clone() for gradient in gradients if gradient is not None])
        encoder.checkpoint_gradients()
    assert len(found[0]) == len(encoder.adapters) and all(gradient.abs().max() > 0 for gradient in found[0])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(*found, strict=True))


def test_views_are_deterministic_and_differ(tmp_path: Path) -> None:
    encoder = CnnEncoder.Config(model="squeezenet1_1", pretrained="random", image_size=64).build(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8))
    plain, first, second = (encoder.transform(image, view, seed=3) for view in range(3))
    assert plain.shape == first.shape == (3, 64, 64)
    assert torch.equal(first, encoder.transform(image, 1, seed=3))
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)


def test_text_towers_average_their_templates(tmp_path: Path) -> None:
    one = OpenClipText(model="cprfl-embedded", pretrained="random").embed(NAMES, tmp_path)
    two = OpenClipText(model="cprfl-embedded", pretrained="random", templates=["a {}.", "the {}."]).embed(
        NAMES, tmp_path
    )
    assert one.embeddings_CM.shape == (3, 64)
    for text in (one, two):
        assert torch.allclose(text.embeddings_CM.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(one.embeddings_CM, two.embeddings_CM)


def test_npz_embeddings_are_looked_up_by_name_centred_and_scaled(shared: Path, tmp_path: Path) -> None:
    path = str(shared / "data" / "text_embeddings" / "coco.npz")
    text = NpzText(path=path, key="clip_vit_b16").embed(NAMES, tmp_path)
    stored = np.load(path)
    row = list(stored["classes"]).index("cat")
    assert np.allclose(text.embeddings_CM[2], stored["clip_vit_b16"][row])
    centred = NpzText(path=path, key="clip_vit_b16", center=True, norm=10).embed(NAMES, tmp_path).embeddings_CM
    assert torch.allclose(centred.norm(dim=1), torch.full((3,), 10.0), atol=1e-4)
    with pytest.raises(ClassNamesError, match="no embedding for 'unicorn'"):
        NpzText(path=path, key="clip_vit_b16").embed(("cat", "unicorn"), tmp_path)
    with pytest.raises(TextEmbeddingsError, match="holds no array 'clip_b16'"):
        NpzText(path=path, key="clip_b16").embed(NAMES, tmp_path)


def test_glove_averages_words_and_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("person 1 0\ntraffic 0 2\nlight 2 0\nunused 9 9\n")
    text = GloveText(path=str(path)).embed(("person", "traffic light"), tmp_path)
    assert text.embeddings_CM.tolist() == [[1, 0], [1, 1]]
    with pytest.raises(TextEmbeddingsError, match="no vector for cat"):
        GloveText(path=str(path)).embed(NAMES, tmp_path)


def test_text_embeddings_survive_safetensors(tmp_path: Path) -> None:
    text = RandomText(dim=7).embed(NAMES, tmp_path)
    text.write(tmp_path / "t.safetensors")
    again = TextEmbeddings.read(tmp_path / "t.safetensors")
    assert again.class_names == NAMES
    assert torch.equal(again.embeddings_CM, text.embeddings_CM)
    assert again.fingerprint == text.fingerprint


def test_the_torchvision_stand_in_suppresses_like_nms() -> None:
    ensure_torchvision()
    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30.0]])
    assert _nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]
    assert _nms(torch.empty(0, 4), torch.empty(0), 0.5).tolist() == []
