"""What is scored of an image, and which images an epoch draws."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cprfl.config import validate
from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store import store as store_module
from cprfl.data.feature_store.filling import StoreInProgress, StoreKey
from cprfl.data.feature_store.shards import ROWS_PER_SHARD, VERSION, Features, ImageRows, write_shard
from cprfl.data.files import fingerprint
from cprfl.data.images import open_image
from cprfl.data.manifest import TEST, TRAIN, Manifest
from cprfl.encoders.base import Encoded, Transform, weights_digest
from cprfl.encoders.clip import OpenClipEncoder
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.rows import decode, encode
from cprfl.errors import ConfigError, DatasetError
from cprfl.experiment import load
from cprfl.inference.predictor import Predictor
from cprfl.inference.scoring import score_test_images
from cprfl.models.base import Facts
from cprfl.preparation import prepare
from cprfl.training import loop
from cprfl.training.augmentation import AugmentationConfig
from cprfl.training.checkpoint import CheckpointInfo, save_checkpoint
from cprfl.training.config import TrainConfig
from cprfl.training.loop import Worker, mean_logits, score
from cprfl.training.objective import Inputs, Objective
from cprfl.training.sampling import class_aware_rows, occurrences
from cprfl.training.sources import ImageFiles, InOrder, LabelledBatch, StoredFeatures
from tests.helpers import manifest_of

CPU = Worker(torch.device("cpu"))


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


# What is scored


@pytest.mark.parametrize(("resize", "larger"), [("squash", (62, 62)), ("crop", (124, 62))])
def test_five_crops_are_the_corners_and_the_centre_of_a_slightly_larger_image(
    resize: Any, larger: tuple[int, int]
) -> None:
    image, size = noise(200, 100), 56
    scored = Transform(size, resize, crops=5).scored(image)
    assert scored.shape == (5, 3, size, size)
    assert scored.dtype == torch.uint8
    resized = pixels_of(image.resize(larger, Image.Resampling.BICUBIC))
    right, bottom = larger[0] - size, larger[1] - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    for crop, (x, y) in zip(scored, corners, strict=True):
        assert torch.equal(crop, resized[:, y : y + size, x : x + size])
    plain = Transform(size, resize)
    assert torch.equal(plain.scored(image), plain(image)[None])


def encoder_config(**options: Any) -> CnnEncoder.Config:
    values = {"model": "squeezenet1_1", "pretrained": "random", "image_size": 32, "batch_size": 7, **options}
    return CnnEncoder.Config.model_validate(values)


def test_crops_change_fingerprints_and_their_absence_leaves_them_as_they_were(tmp_path: Path) -> None:
    clip = OpenClipEncoder.Config(model="cprfl-embedded", pretrained="random")
    for config in (encoder_config(), clip):
        encoder, later = config.build(tmp_path), {"crops", "attention", "statistics", "value_range", "max_pixels"}
        settings = config.model_dump(
            mode="json", exclude={"batch_size", "num_workers", "pretrained", "weights", *later}
        )
        before = fingerprint([settings, encoder.transform_description, weights_digest(encoder)])
        assert encoder.fingerprint() == before
        assert config.model_copy(update={"crops": 5}).build(tmp_path).fingerprint() != before
    images = (("a", "a.jpg", (1, 2)),)
    assert StoreKey(images, "e", 6).fingerprint == fingerprint([VERSION, ROWS_PER_SHARD, images, "e", 6])
    keys = [StoreKey(images, "e", 6), StoreKey(images, "e", 1, 5), StoreKey(images, "e", 2, 5)]
    assert len({key.fingerprint for key in keys}) == 3
    with pytest.raises(ConfigError, match="views"):
        validate(CnnEncoder.Config, {"name": "torchvision", "model": "resnet50", "views": 123}, source="encoder")
    most = ImageRows(122, 5)
    assert (most.total, list(most.scored)) == (127, [122, 123, 124, 125, 126])
    assert (ImageRows(3).total, list(ImageRows(3).scored)) == (3, [0])


def store_of(folder: Path, images: Sequence[Path], config: CnnEncoder.Config) -> FeatureStore:
    """Real features of real images, some shards of them."""
    ids = [path.name for path in images]
    key = StoreKey(tuple((i, str(p), ()) for i, p in zip(ids, images, strict=True)), "e", config.views, config.crops)
    encoder, target = config.build(folder), StoreInProgress(str(folder / "stores"), key, {"model": "test"})
    for number, rows in enumerate(key.shards()):
        decoded = decode([ids[r] for r in rows], [str(images[r]) for r in rows], encoder.transform, config.views)
        write_shard(target.folder, number, encode(decoded.image_ids, decoded.pixels_NK3HW, encoder), decoded.bad)
    return target.finish()


def test_a_store_with_crops_gives_each_kind_of_view(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cprfl.data.feature_store.filling.ROWS_PER_SHARD", 40)
    images, config = sorted(photos.glob("*.png"))[:13], encoder_config(views=3, crops=5)
    store = store_of(tmp_path, images, config)
    assert (len(store), store.num_images, store.views, store.rows_per_image) == (13 * 8, 13, 3, ImageRows(3, 5))
    assert len(store.images) == 3

    def read(views: Any, **options: Any) -> dict[tuple[str, int], torch.Tensor]:
        batches = list(store.iter_batches(4, views=views, **options))
        keys = [(i, v) for batch in batches for i, v in zip(batch.image_ids, batch.views_B.tolist(), strict=True)]
        return dict(zip(keys, torch.cat([batch.global_BE for batch in batches]), strict=True))

    everything = read("all")
    assert list(read("scored")) == [(path.name, view) for path in images for view in range(3, 8)]
    assert [view for _, view in read("plain")] == [0] * 13
    drawn = {view for seed in range(20) for _, view in read("random", shuffle_seed=seed)}
    assert drawn == {0, 1, 2}
    shared = [read("scored", rank=rank, world_size=3) for rank in range(3)]
    assert sum(map(len, shared)) == 13 * 5
    encoder = config.build(tmp_path)
    crops = encoder.transform.scored(open_image(str(images[8])))
    with torch.inference_mode():
        expected = encoder(crops).global_BE
    found = torch.stack([everything[images[8].name, view] for view in range(3, 8)])
    assert torch.allclose(found.float(), expected, rtol=1e-2, atol=1e-3)
    assert store.subset([images[2].name, images[11].name]).num_images == 2
    store.verify()


class Rows:
    """Rows of 7 images in an arbitrary order, several of some; the cells of a row are its logits."""

    num_images = 7

    def __init__(self, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(rows, 4, generator=generator)
        self.ids = [str(row % 7) for row in range(rows)]

    def in_order(
        self, batch_size: int, rank: int = 0, world_size: int = 1, views: InOrder = "scored"
    ) -> Iterator[LabelledBatch]:
        own = torch.arange(len(self.ids))[rank::world_size]
        for part in own.split(batch_size) if len(own) else ():
            ids = [self.ids[row] for row in part.tolist()]
            yield LabelledBatch(Encoded(self.values[part][:, None], self.values[part]), torch.zeros(len(part), 4), ids)

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        return self.in_order(batch_size, rank, world_size)


class Summary(torch.nn.Module):
    """The summaries are the logits; members are once and twice of them."""

    def forward(self, grid_BVD: torch.Tensor, global_BE: torch.Tensor) -> torch.Tensor:
        return global_BE

    def member_logits(self, grid_BVD: torch.Tensor, global_BE: torch.Tensor) -> torch.Tensor:
        return torch.stack([global_BE, 2 * global_BE])


def together(world_size: int, work: Callable[[Worker], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each of several workers finds, which are threads here: a reduction waits for all of them."""
    barrier, local, slots = threading.Barrier(world_size, timeout=30), threading.local(), [torch.empty(0)] * world_size

    def all_reduce(values: torch.Tensor, operation: Any = None) -> None:
        slots[local.rank] = values.clone()
        barrier.wait()
        stacked = torch.stack(slots)
        values.copy_(stacked.sum(dim=0) if operation is None else stacked.amax(dim=0))
        barrier.wait()

    found: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        local.rank = rank
        found[rank] = work(Worker(CPU.device, rank, world_size))

    monkeypatch.setattr(loop.dist, "all_reduce", all_reduce)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found


@pytest.mark.parametrize("rows", [7, 35, 33])
@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_the_logits_of_an_images_rows_are_averaged_wherever_they_are(
    rows: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Rows(rows)
    ids = ["3", "0", "6", "1", "2", "5", "4"]
    expected = torch.stack([data.values[[row for row in range(rows) if data.ids[row] == i]].mean(dim=0) for i in ids])

    def work(worker: Worker) -> torch.Tensor:
        objective = Objective(Summary(), torch.nn.Identity(), TrainConfig())  # type: ignore[arg-type]
        plain = score(objective, data, ids, 4, worker)
        members = score(objective, data, ids, 4, worker, members=True)
        return torch.cat([plain[None], members])

    for found in together(world_size, work, monkeypatch):
        assert torch.allclose(found, torch.stack([expected, expected, 2 * expected]), atol=1e-6)
        if rows == 7:
            assert torch.equal(found[0], expected)


def test_a_prediction_is_what_the_evaluation_says_with_five_crops_too(small_config: Path, tmp_path: Path) -> None:
    experiment = load(small_config, ["encoder.crops=5", "encoder.views=2", "model.name=linear_probe"])
    prepared = prepare(experiment)
    assert prepared.store is not None
    training, test = prepared.manifest.split(TRAIN), prepared.manifest.split(TEST)
    torch.manual_seed(0)
    facts = Facts.of_data(
        training, prepared.text.embeddings_CM, prepared.store.grid_shape[1], prepared.store.global_dim
    )
    objective = Objective(experiment.model.build(facts), torch.nn.Identity(), experiment.train)
    info = CheckpointInfo(
        experiment.model_dump(mode="json"), "key", list(facts.class_names), prepared.encoder_fingerprint, "text", 1, {},
        holds_tower=False,
    )  # fmt: skip
    save_checkpoint(tmp_path / "checkpoint", objective.kept_state(), facts, info, None)
    evaluated = score_test_images(experiment, prepared, tmp_path / "checkpoint")
    predictor = Predictor.load(tmp_path / "checkpoint")
    images = [open_image(uri) for uri in test.uris]
    predicted = torch.from_numpy(predictor.predict(images)).logit()
    assert torch.allclose(predicted, torch.from_numpy(evaluated), atol=2e-3)
    assert predictor.predict([]).shape == (0, 3)

    def of_images(inputs: Inputs) -> torch.Tensor:
        assert isinstance(inputs, torch.Tensor)
        return predictor.logits([inputs])

    files = ImageFiles(test, predictor.encoder)
    decoded = mean_logits(of_images, files, test.image_ids, 13, CPU)
    assert torch.allclose(decoded, torch.from_numpy(evaluated), atol=2e-3)
    sizes = [len(batch.image_ids) for batch in files.in_order(13)]
    assert sizes == [10] * (len(test) // 2) + [5] * (len(test) % 2)
    plain = predictor.logits([torch.stack([predictor.encoder.transform(image) for image in images])])
    assert not torch.allclose(plain, decoded, atol=2e-3)
    again = torch.cat([predictor.logits([b.inputs]) for b in files.in_order(13, views="plain")])  # type: ignore[list-item]
    assert torch.allclose(plain, again, atol=1e-5)


# Which images an epoch draws

LABELS = [(0,), (0, 1), (0,), (), (0, 2), (0,), (0,), (1,), (), (0,), (4, 0), (0,)]  # class 3 has no image


def labelled(labels: Sequence[Sequence[int]] = LABELS, uris: Sequence[str] | None = None) -> Manifest:
    targets = np.zeros((len(labels), 5), np.float32)
    for row, own in enumerate(labels):
        targets[row, list(own)] = 1
    manifest = manifest_of(targets)
    return manifest if uris is None else Manifest(
        manifest.class_names, manifest.image_ids, tuple(uris), manifest.splits, manifest.labels
    )  # fmt: skip


def test_classes_take_turns_and_their_images_too() -> None:
    labels = LABELS * 3
    rows = class_aware_rows(labels, seed=5)
    assert len(rows) == len(labels)
    assert not {row for row in rows.tolist() if not labels[row]}
    # Images of one class alone tell whose turn it was.
    for start in range(0, len(rows) - 3, 4):
        turn = [set(labels[row]) for row in rows[start : start + 4]]
        assert any(2 in own for own in turn)
        assert any(4 in own for own in turn)
    alone = [row for row, own in enumerate(labels) if own == (1,)]
    both = [row for row, own in enumerate(labels) if own == (0, 1)]
    assert len(alone) + len(both) == 6  # class 1 has nine turns, so each of its images comes once at least
    counts = Counter(rows.tolist())
    assert all(1 <= counts[row] <= 2 for row in alone)
    assert np.array_equal(rows, class_aware_rows(labels, seed=5))
    assert not np.array_equal(rows, class_aware_rows(labels, seed=6))
    with pytest.raises(DatasetError, match="train.sampler=class_aware: no training image shows a class"):
        class_aware_rows([(), ()], seed=0)
    assert occurrences(np.array([4, 1, 4, 4, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]


def drawn(source: Any, seed: int, world_size: int = 1, batch_size: int = 5) -> list[list[str]]:
    """The ids that each worker draws."""
    parts = []
    for rank in range(world_size):
        batches = list(source.batches(batch_size, seed, rank, world_size))
        assert all(len(batch.image_ids) == batch_size for batch in batches[:-1])
        parts.append([image_id for batch in batches for image_id in batch.image_ids])
    assert len({len(part) for part in parts}) == 1
    return parts


def numbered_store(folder: Path, images: int, views: int = 2) -> FeatureStore:
    """Features that tell the image (its number) and the view."""
    key = StoreKey(tuple((str(number), str(number), ()) for number in range(images)), "e", views)
    target = StoreInProgress(str(folder), key, {})
    for shard, rows in enumerate(key.shards()):
        numbers, view = np.repeat(np.array(rows), views), np.tile(np.arange(views, dtype=np.int8), len(rows))
        grid = (numbers + view / 4).astype("<f2")[:, None, None]
        write_shard(target.folder, shard, Features(tuple(map(str, numbers)), view, grid, grid[:, 0]), [])
    return target.finish()


@pytest.mark.parametrize("memory_bytes", [0, 2**20])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_cached_features_are_drawn_class_by_class(
    tmp_path: Path, world_size: int, memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cprfl.data.feature_store.filling.ROWS_PER_SHARD", 10)
    manifest = labelled(LABELS * 5)  # 60 images, which 2, 3 and 5 divide
    store = numbered_store(tmp_path, len(manifest))
    source = StoredFeatures(manifest, store, memory_bytes, "class_aware")
    views = set()
    for seed in (1, 2):
        expected = Counter(manifest.image_ids[row] for row in class_aware_rows(manifest.labels, seed))
        parts = drawn(source, seed, world_size)
        assert Counter(image_id for part in parts for image_id in part) == expected
        assert max(expected.values()) > 1
        assert parts == drawn(source, seed, world_size)
        for inputs, targets_BC, ids in source.batches(7, seed, 0, world_size):
            assert isinstance(inputs, Encoded)
            numbers = torch.tensor(list(map(int, ids)))
            assert torch.equal(inputs.grid_BVD[:, 0, 0].floor().long(), numbers)
            assert torch.equal(targets_BC, torch.from_numpy(manifest.targets())[numbers])
            views |= set((inputs.global_BE[:, 0] % 1).tolist())
    assert views == {0.0, 0.25}
    assert drawn(source, 1) != drawn(source, 2)
    in_order = [image_id for batch in source.in_order(9) for image_id in batch.image_ids]
    assert in_order == list(manifest.image_ids)
    uniform = StoredFeatures(manifest, store, memory_bytes)
    assert Counter(drawn(uniform, 1)[0]) == Counter(manifest.image_ids)


def test_what_is_kept_in_memory_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cprfl.data.feature_store.filling.ROWS_PER_SHARD", 10)
    source = StoredFeatures(labelled(), numbered_store(tmp_path, len(LABELS)), 2**20, "class_aware")
    reads: list[str] = []
    read = store_module.read_shard
    monkeypatch.setattr(store_module, "read_shard", lambda *arguments: reads.append(arguments[1]) or read(*arguments))  # type: ignore[func-returns-value]
    for seed in range(6):
        list(source.batches(4, seed, 0, 1))
    assert len(reads) == len(set(reads)) == 3


def test_images_are_drawn_class_by_class_and_augmented_anew(tmp_path: Path, photos: Path) -> None:
    paths = [str(path) for path in sorted(photos.glob("*.png"))[: len(LABELS)]]
    manifest, encoder = labelled(uris=paths), encoder_config(image_size=16).build(tmp_path)
    source = ImageFiles(manifest, encoder, AugmentationConfig(), sampler="class_aware")
    expected = [manifest.image_ids[row] for row in class_aware_rows(manifest.labels, 3)]
    assert drawn(source, 3) == [expected]
    one, two = drawn(source, 3, world_size=2)
    assert Counter(one + two) == Counter(expected)
    batches = list(source.batches(5, 3, 0, 1))
    pixels = torch.cat([batch.inputs for batch in batches])  # type: ignore[misc]
    again = torch.cat([batch.inputs for batch in source.batches(5, 3, 0, 1)])  # type: ignore[misc]
    assert torch.equal(pixels, again)
    often = Counter(expected).most_common(1)[0][0]
    versions = [pixels[place] for place, image_id in enumerate(expected) if image_id == often]
    assert len(versions) > 1
    assert not torch.equal(versions[0], versions[1])
    plain = torch.cat([batch.inputs for batch in source.in_order(5)])  # type: ignore[misc]
    assert torch.equal(plain[2], encoder.transform(open_image(paths[2])))  # without the augmentation
