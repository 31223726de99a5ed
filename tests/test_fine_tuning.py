"""Fine-tuning: the published protocol through the same loop, checkpoint and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cprfl.models.fine_tuned import FineTuned, grid_channels
from cprfl.predictor import Predictor
from PIL import Image
from pipelines.import_published import _by_position, import_published
from pipelines.preprocess import preprocess
from pipelines.train import training_key

from cprfl.data.images import open_image
from cprfl.encoders.cnn import CnnEncoder
from cprfl.errors import BadImagesError, ConfigError
from cprfl.experiment import load
from cprfl.models import CPRFL, LinearProbe
from cprfl.models.cprfl import _PUBLISHED
from cprfl.torchvision_cpu import ensure_torchvision
from cprfl.training.augmentation import AugmentationConfig, augment
from cprfl.training.config import TrainConfig
from cprfl.training.optimizer import adamw
from cprfl.training.sources import ImageFiles
from pipelines import run as stages

CONFIGS = Path(__file__).parent.parent / "configs"


def network(tmp_path: Path, **options: str) -> FineTuned:
    encoder = CnnEncoder.Config(model="resnet50", pretrained="random", image_size=32).build(tmp_path)
    return FineTuned(encoder, LinearProbe(grid_channels(encoder), 3), **({"batch_norm": "train"} | options))


def test_the_encoder_has_its_own_rate_and_decay(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(
        {"lr": 1.0, "weight_decay": 0.5, "finetune": {"lr_factor": 0.1, "weight_decay": 0.2}}
    )
    groups = adamw(network(tmp_path), config).param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1.0, 0.5), (1.0, 0.0), (0.1, 0.2), (0.1, 0.0)]


def test_frozen_batch_norms_keep_their_statistics(tmp_path: Path) -> None:
    for mode, moved in (("train", True), ("frozen", False)):
        model = network(tmp_path, batch_norm=mode).train()
        before = model.encoder.cnn[1].running_mean.clone()
        model(torch.rand(2, 3, 32, 32))
        assert bool((model.encoder.cnn[1].running_mean != before).any()) is moved


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    model, images = network(tmp_path, batch_norm="frozen").train(), torch.rand(2, 3, 32, 32)
    plain = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    model.encoder.checkpoint_gradients()
    again = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, again, strict=True))


def test_augmentation_follows_seed_and_row_in_any_process(photos: Path, tmp_path: Path) -> None:
    dataset = load_small(tmp_path, photos)
    encoder = CnnEncoder.Config(model="squeezenet1_1", pretrained="random", image_size=32).build(tmp_path)

    def images(processes: int, seed: int = 1) -> torch.Tensor:
        source = ImageFiles(dataset, encoder, AugmentationConfig(), processes)
        return torch.cat([batch.inputs for batch in source.batches(3, seed, rank=0, world_size=2)])

    assert torch.equal(images(0), images(2))
    assert not torch.equal(images(0), images(0, seed=2))
    painted = augment(Image.new("RGB", (40, 40)), AugmentationConfig(cutout=0.5, randaugment=False))
    assert 0 < np.asarray(painted).any(axis=2).mean() <= 0.3


def load_small(tmp_path: Path, photos: Path):  # type: ignore[no-untyped-def]
    from cprfl.data.readers.csv_table import CsvDataset

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
        return training_key(experiment, preprocess(experiment))

    first = key()
    assert key() == first
    assert key("encoder.image_size=32") != first
    Image.new("RGB", (64, 48)).save(own_photos / "03.png")
    assert key() != first


def test_what_fine_tuning_cannot_do_is_said(own_config: Path, own_photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.standardize needs statistics of fixed features"):
        load(own_config, ["train.backbone=finetune"])
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
    cnn, head = resnet50().eval(), CPRFL(torch.zeros(3, 16), 2048, dim=24, num_heads=2, head_dim=6, mlp_dim=16, tau=0.5)
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
    "voc_lt": ["encoder.image_size=64"],
    "coco_lt_clip": ["encoder.views=2", "encoder.image_size=64"],  # voc_lt_clip differs in its lists only
}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
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
    checkpoint = stages.train_stage(experiment)
    assert (checkpoint / "encoder.safetensors").exists() == (experiment.train.backbone == "finetune")
    assert stages.evaluate_stage(experiment).metrics["mAP"] > 0
