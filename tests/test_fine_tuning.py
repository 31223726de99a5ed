"""Towers that move, as a whole or by adapters, through the same loop, checkpoint and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.encoders.adapters import Adapter, load_moved_state, moved_state
from cprfl.encoders.base import ImageEncoder
from cprfl.encoders.clip import OpenClipEncoder
from cprfl.encoders.cnn import CnnEncoder
from cprfl.errors import BadImagesError, ConfigError
from cprfl.experiment import load
from cprfl.inference.predictor import Predictor
from cprfl.losses import AsymmetricLoss
from cprfl.models import CPRFL, LinearProbe
from cprfl.models.cprfl import _PUBLISHED
from cprfl.torchvision_cpu import ensure_torchvision
from cprfl.training.augmentation import AugmentationConfig, augment
from cprfl.training.config import TrainConfig
from cprfl.training.ema import Ema
from cprfl.training.objective import Objective
from cprfl.training.optimizer import adamw
from cprfl.training.sources import ImageFiles
from pipelines.stages import run as stages
from pipelines.stages.import_published import _by_position, import_published
from pipelines.stages.preprocess import preprocess
from pipelines.stages.train import train_stage
from tests.helpers import facts_of

CONFIGS = Path(__file__).parent.parent / "configs"


def resnet(tmp_path: Path) -> ImageEncoder:
    return CnnEncoder.Config(model="resnet50", pretrained="random", image_size=32).build(tmp_path)


def objective_of(
    encoder: ImageEncoder, dim: int = 2048, teacher: ImageEncoder | None = None, **train: Any
) -> Objective:
    method = LinearProbe.Config(standardize=False).build(facts_of(3, grid_dim=dim))
    config = TrainConfig.model_validate({"backbone": "finetune", **train})
    return Objective(method, AsymmetricLoss(), config, encoder, teacher)


def losses_of(objective: Objective, images: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(images, 3, 32, 32, generator=generator)
    return objective(pictures, torch.eye(3)[:images])


def test_the_encoder_has_its_own_rate_and_decay(tmp_path: Path) -> None:
    train = {"lr": 1.0, "weight_decay": 0.5, "finetune": {"lr_factor": 0.1, "weight_decay": 0.2}}
    groups = adamw(objective_of(resnet(tmp_path)), TrainConfig.model_validate(train)).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1.0, 0.5), (1.0, 0.0), (0.1, 0.2), (0.1, 0.0)]


def test_frozen_batch_norms_keep_their_statistics(tmp_path: Path) -> None:
    for mode, moved in (("train", True), ("frozen", False)):
        encoder = resnet(tmp_path)
        before = encoder.get_buffer("cnn.1.running_mean").clone()
        losses_of(objective_of(encoder, finetune={"batch_norm": mode}).train())
        assert bool((encoder.get_buffer("cnn.1.running_mean") != before).any()) is moved


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    objective = objective_of(resnet(tmp_path), finetune={"batch_norm": "frozen"}).train()
    parameters = list(objective.trained_parameters().values())
    plain = torch.autograd.grad(losses_of(objective)["criterion"], parameters)
    assert objective.tower is not None
    objective.tower.checkpoint_gradients()
    again = torch.autograd.grad(losses_of(objective)["criterion"], parameters)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, again, strict=True))


TOWERS = {
    "resnet50": (CnnEncoder.Config(model="resnet50", pretrained="random", image_size=32), 4),
    "squeezenet": (CnnEncoder.Config(model="squeezenet1_1", pretrained="random", image_size=32), 8),
    "ViT": (OpenClipEncoder.Config(model="ViT-B-32", pretrained="random", image_size=32), 12),
    "CLIP's ResNet": (OpenClipEncoder.Config(model="RN50", pretrained="random"), 4),
    "timm's ResNet in CLIP": (OpenClipEncoder.Config(model="cprfl-embedded", pretrained="random"), 4),
}


@pytest.mark.parametrize("name", TOWERS)
def test_adapters_begin_as_nothing_and_are_all_that_learns(tmp_path: Path, name: str) -> None:
    config, num_blocks = TOWERS[name]
    encoder, plain = (config.build(tmp_path) for _ in range(2))
    size = encoder.image_size
    pictures, targets = torch.rand(2, 3, size, size), torch.eye(3)[:2]
    dim = plain(pictures).grid_BVD.shape[-1]
    objective = objective_of(encoder, dim, backbone="adapter", finetune={"adapter_width": 8}).train()
    assert encoder.adapters is not None
    assert len(encoder.adapters) == len(encoder.blocks()) == num_blocks
    with torch.no_grad():
        assert torch.allclose(encoder(pictures).grid_BVD, plain(pictures).grid_BVD, atol=1e-5)
    trained = objective.trained_parameters()
    assert {part for key in trained for part in ("method.", "tower.adapters.") if key.startswith(part)} == {
        "method.", "tower.adapters.",
    }  # fmt: skip
    assert not [key for key in trained if key.startswith("tower.") and not key.startswith("tower.adapters.")]
    objective(pictures, targets)["criterion"].backward()
    ups = [adapter.up.weight.grad for adapter in encoder.adapters if isinstance(adapter, Adapter)]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in ups)
    frozen = [value for key, value in objective.named_parameters() if key not in trained]
    assert frozen
    assert all(value.grad is None for value in frozen)
    # The state that is kept, averaged and resumed has the adapters, and brings another tower to the same.
    assert {key for key in Ema(objective, 0.9).state_dict() if key.startswith("tower.")} == {
        key for key in trained if key.startswith("tower.")
    }
    with torch.no_grad():
        for parameter in encoder.adapters.parameters():
            parameter.add_(0.1)
    load_moved_state(plain, "adapter", 8, moved_state(encoder, "adapter"), "here")
    with torch.no_grad():
        assert torch.equal(encoder(pictures).grid_BVD, plain(pictures).grid_BVD)
    assert plain.fingerprint() == encoder.fingerprint() != config.build(tmp_path).fingerprint()


def test_distillation_keeps_the_tower_near_a_copy_that_is_in_no_state(tmp_path: Path) -> None:
    encoder, teacher = resnet(tmp_path), resnet(tmp_path)
    objective = objective_of(encoder, teacher=teacher, distill=2.0, finetune={"batch_norm": "frozen"}).train()
    parts = losses_of(objective)
    assert list(parts) == ["criterion", "distill"]
    assert parts["distill"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        encoder.get_parameter("cnn.0.weight").mul_(1.1)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    distance = (encoder(images).global_BE - teacher(images).global_BE).abs().mean()
    parts = losses_of(objective)
    assert parts["distill"].item() == pytest.approx(2 * distance.item(), rel=1e-4)
    torch.stack(list(parts.values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not [name for name in objective.state_dict() if "teacher" in name]


def test_augmentation_follows_seed_and_row_in_any_process(photos: Path, tmp_path: Path) -> None:
    dataset = load_small(photos)
    encoder = CnnEncoder.Config(model="squeezenet1_1", pretrained="random", image_size=32).build(tmp_path)

    def images(processes: int, seed: int = 1) -> torch.Tensor:
        source = ImageFiles(dataset, encoder, AugmentationConfig(), processes)
        found = [batch.inputs for batch in source.batches(3, seed, rank=0, world_size=2)]
        return torch.cat([part for part in found if isinstance(part, torch.Tensor)])

    assert torch.equal(images(0), images(2))
    assert not torch.equal(images(0), images(0, seed=2))
    painted = augment(Image.new("RGB", (40, 40)), AugmentationConfig(cutout=0.5, randaugment=False))
    assert 0 < np.asarray(painted).any(axis=2).mean() <= 0.3


def load_small(photos: Path) -> Manifest:
    return CsvDataset(splits={"train": str(photos / "train.csv")}).read()


@pytest.mark.usefixtures("ray_session")
def test_a_fine_tuned_run_is_evaluated_with_its_own_encoder(small_config: Path, photos: Path) -> None:
    experiment = load(
        small_config,
        ["train.backbone=finetune", "model.standardize=false", "train.epochs=2", "train.finetune.num_processes=0",
         "resources.num_workers=2", "resources.cpus_per_worker=1"],
    )  # fmt: skip
    result = stages.run(experiment)["small"]
    assert "mAP" in result.metrics
    predictor = Predictor.load(experiment.folder / "checkpoint")
    before = experiment.encoder.build(experiment.cache_dir)
    assert not torch.equal(next(predictor.encoder.parameters()), next(before.parameters()))
    scores = predictor.predict([open_image(str(photos / "20.png"))])
    assert scores.shape == (1, 3)
    assert not (experiment.cache_dir / "features").exists()


def test_a_replaced_image_or_encoder_is_another_training(own_config: Path, own_photos: Path) -> None:
    def key(*overrides: str) -> str:
        experiment = load(own_config, ["train.backbone=finetune", "model.standardize=false", *overrides])
        return preprocess(experiment).training_key(experiment)

    first = key()
    assert key() == first
    assert key("encoder.image_size=32") != first
    Image.new("RGB", (64, 48)).save(own_photos / "03.png")
    assert key() != first


def test_what_fine_tuning_cannot_do_is_said(own_config: Path, own_photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.standardize needs statistics of fixed features"):
        load(own_config, ["train.backbone=finetune"])
    for method in ("logistic_regression", "gaussian_discriminant"):
        with pytest.raises(ConfigError, match=f"model.name={method} is fitted to fixed features"):
            load(own_config, ["train.backbone=adapter", f"model.name={method}"])
    with pytest.raises(ConfigError, match="distill needs an encoder that moves"):
        load(own_config, ["train.distill=1"])
    with pytest.raises(ConfigError, match="first.train.backbone: frozen trains no image tower"):
        load(own_config, ["first.train.epochs=1"])
    with pytest.raises(ConfigError, match=r"encoder.views is for cached features"):
        load(own_config, ["train.backbone=finetune", "model.standardize=false", "encoder.views=3"])
    (own_photos / "03.png").write_bytes(b"no image")
    with pytest.raises(BadImagesError, match="03.png"):
        stages.run(load(own_config, ["train.backbone=finetune", "model.standardize=false"]))


@pytest.mark.parametrize("by_position", [True, False])
def test_a_published_checkpoint_becomes_one_of_ours(small_config: Path, tmp_path: Path, by_position: bool) -> None:
    ensure_torchvision()
    from torchvision.models import resnet50

    torch.manual_seed(0)
    config = CPRFL.Config(dim=24, num_heads=2, head_dim=6, mlp_dim=16, tau=0.5)
    cnn, head = resnet50().eval(), config.build(facts_of(3, text_dim=16, grid_dim=2048))
    published = {}
    fused = torch.cat([head.state_dict()[f"interaction.blocks.0.to_{p}.weight"] for p in ("query", "key", "value")])
    for name, value in head.state_dict().items():
        prefix = next((ours for ours in _PUBLISHED if name.startswith(ours)), None)
        if prefix and "to_query" not in name and "to_key" not in name and "to_value" not in name:
            published[f"module.{_PUBLISHED[prefix]}{name.removeprefix(prefix)}"] = value
    published["module.attention.layers.0.0.fn.to_qkv.weight"] = fused
    for name, value in cnn.state_dict().items():
        if not name.startswith("fc."):
            published[f"module.Backbone.{_by_position(name) if by_position else name}"] = value
    torch.save({"state_dict": published}, tmp_path / "published.pt")
    experiment = load(
        small_config,
        ["encoder.model=resnet50", "model.standardize=false", "model.num_heads=2", "train.backbone=finetune"],
    )
    folder = import_published(str(tmp_path / "published.pt"), experiment)
    assert stages.evaluate_stage(experiment).metrics["mAP"] > 0
    predictor = Predictor.load(folder)
    image = torch.rand(1, 3, 64, 64)
    text = experiment.text_encoder.embed(tuple(predictor.class_names), tmp_path).embeddings_CM
    reference = CPRFL.from_published(published, text, num_heads=2).eval()
    features = torch.nn.Sequential(*list(cnn.children())[:-2])((image - predictor.encoder.mean) / predictor.encoder.std)
    expected = reference(features.flatten(2).transpose(1, 2))
    assert torch.allclose(predictor.logits([image]), expected, rtol=1e-2, atol=1e-3)


OTHERS = {  # what stands for weights that are not at hand, in less time
    "coco_lt": ["encoder.image_size=64"],
    "voc_lt": ["encoder.image_size=64", "encoder.model=resnet50", "model.dim=64"],  # coco_lt is as large as it is
    "coco_lt_clip": ["encoder.views=2", "encoder.image_size=64"],  # voc_lt_clip differs in its lists only
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_published_configurations_run_with_other_paths_size_and_epochs(
    shared: Path, tmp_path: Path, name: str
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, folder in (("train", "train2017"), ("test", "val2017")):
        lines = (shared / "data" / "coco_mini" / f"{folder}.txt").read_text().splitlines()
        (lists / f"{split}.txt").write_text("\n".join(lines[:48]) + "\n")
    experiment = load(
        CONFIGS / f"{name}.yaml",
        [
            f"data_root={shared}/data", f"output_dir={tmp_path}/outputs", "dataset.labels=lists/coco_labels.txt",
            "dataset.images=coco_mini/images", f"dataset.splits.train={lists}/train.txt",
            f"dataset.splits.test={lists}/test.txt", "encoder.pretrained=random",
            "text_encoder.name=npz", "text_encoder.path=text_embeddings/coco.npz", "text_encoder.key=clip_vit_b16",
            "train.epochs=1", "train.schedule_epochs=1", *OTHERS[name],
        ],
    )  # fmt: skip
    checkpoint = train_stage(experiment)
    assert (checkpoint / "tower.safetensors").exists() == (experiment.train.backbone == "finetune")
    assert stages.evaluate_stage(experiment).metrics["mAP"] > 0
