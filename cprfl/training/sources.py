"""Where training and scoring get their batches: cached features, or images decoded on the fly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cprfl.data.feature_store import FeatureStore
from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.encoders.base import Encoded, ImageEncoder
from cprfl.errors import UnreadableImageError
from cprfl.training.augmentation import AugmentationConfig, augment
from cprfl.training.objective import Inputs


class LabelledBatch(NamedTuple):
    """What one process works on in one step.

    Attributes:
        inputs: cached features in float16, or images uint8 [B, 3, H, W].
        targets_BC: multi-hot, float32.
        image_ids: of the B rows.
    """

    inputs: Inputs
    targets_BC: Tensor
    image_ids: Sequence[str]


class Source(Protocol):
    """Labelled images, or what has been made of them."""

    @property
    def num_images(self) -> int:
        """How many there are."""

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        """One epoch of one worker in random order; every worker gets as many batches, and of the same size."""

    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[LabelledBatch]:
        """Each image's plain view once, shared among the workers; their order may be the storage's."""


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

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        """Shuffled by shards and within a bounded buffer of them."""
        for batch in self.store.iter_batches(
            batch_size, shuffle_seed=seed, rank=rank, world_size=world_size, views="random"
        ):
            yield self._labelled(batch.grid_BVD, batch.global_BE, batch.image_ids)

    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[LabelledBatch]:
        """Plain views in the store's order."""
        for batch in self.store.iter_batches(batch_size, rank=rank, world_size=world_size, views="plain"):
            yield self._labelled(batch.grid_BVD, batch.global_BE, batch.image_ids)

    def _labelled(self, grid_BVD: Tensor, global_BE: Tensor, image_ids: Sequence[str]) -> LabelledBatch:
        rows = [self._row[image_id] for image_id in image_ids]
        return LabelledBatch(Encoded(grid_BVD, global_BE), self.targets_NC[rows], image_ids)


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
        self.manifest, self.transform = manifest, encoder.transform
        self.augmentation, self.num_processes = augmentation, num_processes
        self.targets_NC = torch.from_numpy(manifest.targets())

    @property
    def num_images(self) -> int:
        """Images of the manifest."""
        return len(self.manifest)

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        """Shuffled over all images; the first ones come again where there are too few for the last worker."""
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        order = torch.cat([order, order[: -self.num_images % world_size]])
        return self._decoded(order[rank::world_size].split(batch_size), seed)

    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[LabelledBatch]:
        """The images in the manifest's order."""
        return self._decoded(torch.arange(self.num_images)[rank::world_size].split(batch_size), seed=0)

    def _decoded(self, rows: Sequence[Tensor], seed: int) -> Iterator[LabelledBatch]:
        loader = DataLoader(
            _Decoded(self, seed),
            batch_sampler=[batch.tolist() for batch in rows if len(batch)],
            num_workers=self.num_processes,
            pin_memory=torch.cuda.is_available(),
        )
        try:
            for images_B3HW, rows_B in loader:
                ids = [self.manifest.image_ids[row] for row in rows_B.tolist()]
                yield LabelledBatch(images_B3HW, self.targets_NC[rows_B], ids)
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
        return self.source.transform(image), row
