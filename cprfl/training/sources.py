"""Where the training loop gets its batches: cached features, or images decoded on the fly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cprfl.data.feature_store import FeatureStore
from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.encoders.image import ImageEncoder
from cprfl.errors import UnreadableImageError
from cprfl.training.augmentation import AugmentationConfig, augment


class TrainingBatch(NamedTuple):
    """What one worker trains on in one step.

    Attributes:
        inputs: of the network: features float16 [B, V, D], or images uint8 [B, 3, H, W].
        targets_BC: multi-hot, float32.
        image_ids: of the B rows.
    """

    inputs: Tensor
    targets_BC: Tensor
    image_ids: Sequence[str]


class TrainingSource(Protocol):
    """The training images, or what has been made of them."""

    @property
    def num_images(self) -> int:
        """How many there are."""

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[TrainingBatch]:
        """One epoch of one worker in random order; every worker gets as many batches, and of the same size."""


class StoredFeatures:
    """Cached features; of each image one view, drawn anew in every epoch.

    Args:
        manifest: the images and their labels.
        store: has features of all of them.
        memory_bytes: keep the features in memory if they fit into this; the batches are the same.
    """

    def __init__(self, manifest: Manifest, store: FeatureStore, memory_bytes: int = 0) -> None:
        self.store = store.subset(manifest.image_ids, memory_bytes)
        self.targets_NC = torch.from_numpy(manifest.targets())
        self._row = {image_id: row for row, image_id in enumerate(manifest.image_ids)}

    @property
    def num_images(self) -> int:
        """Images with features."""
        return self.store.num_images

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[TrainingBatch]:
        """Shuffled by shards and within a bounded buffer of them."""
        for batch in self.store.iter_batches(
            batch_size, shuffle_seed=seed, rank=rank, world_size=world_size, views="random"
        ):
            rows = [self._row[image_id] for image_id in batch.image_ids]
            yield TrainingBatch(batch.grid_BVD, self.targets_NC[rows], batch.image_ids)

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Plain views of all images in the store's order, float16 [B, V, D]."""
        return (batch.grid_BVD for batch in self.store.iter_batches(batch_size, views="plain"))


class ImageFiles:
    """Images of a manifest, decoded when they are needed.

    Args:
        manifest: the images.
        encoder: whose transform makes the network's input.
        augmentation: what to do to the image first; none for evaluation.
        num_processes: that decode; 0 decodes in this one.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: ImageEncoder,
        augmentation: AugmentationConfig | None = None,
        num_processes: int = 0,
    ) -> None:
        self.manifest, self.encoder = manifest, encoder
        self.augmentation, self.num_processes = augmentation, num_processes
        self.targets_NC = torch.from_numpy(manifest.targets())

    @property
    def num_images(self) -> int:
        """Images of the manifest."""
        return len(self.manifest)

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[TrainingBatch]:
        """Shuffled over all images; the first ones come again where there are too few for the last worker."""
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        order = torch.cat([order, order[: -self.num_images % world_size]])
        rows = order[rank::world_size].split(batch_size)
        for images_B3HW, rows_B in self._decoded(rows, seed):
            ids = [self.manifest.image_ids[row] for row in rows_B.tolist()]
            yield TrainingBatch(images_B3HW, self.targets_NC[rows_B], ids)

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """All images in the manifest's order, uint8 [B, 3, H, W]."""
        return (images for images, _ in self._decoded(torch.arange(self.num_images).split(batch_size), seed=0))

    def _decoded(self, rows: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            _Decoded(self, seed),
            batch_sampler=[batch.tolist() for batch in rows],
            num_workers=self.num_processes,
            pin_memory=torch.cuda.is_available(),
        )
        try:
            yield from loader
        except UnreadableImageError as error:  # of a process that decodes, with its traceback before it
            last = str(error).strip().splitlines()[-1]
            raise UnreadableImageError(last.split("UnreadableImageError: ")[-1]) from None


class _Decoded(Dataset[tuple[Tensor, int]]):
    """One image by row; its augmentation follows from seed and row, whichever process decodes it."""

    def __init__(self, source: ImageFiles, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        uri = self.source.manifest.uris[row]
        try:
            image = open_image(uri)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{uri}: {error}; it was readable when the run began") from None
        if self.source.augmentation is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1_000_003 + row)
                image = augment(image, self.source.augmentation)
        return self.source.encoder.transform(image), row
