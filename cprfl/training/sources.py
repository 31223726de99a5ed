"""Where the training loop gets its batches: cached features in memory, or images decoded on the fly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.encoders.image import ImageEncoder
from cprfl.training.augmentation import AugmentationConfig, augment


class TrainingSource(Protocol):
    """Inputs and targets of the training images, by row."""

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Id of each row."""

    def batches(self, rows: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and multi-hot targets of each batch of rows; random choices follow from ``seed``."""


class CachedFeatures(NamedTuple):
    """Features of images with K views each, in memory; each time a view is drawn anew."""

    image_ids: tuple[str, ...]
    grids_NKVD: Tensor
    targets_NC: Tensor

    def batches(self, rows: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features [B, V, D] and targets [B, c]."""
        generator = torch.Generator().manual_seed(seed)
        num_views = self.grids_NKVD.shape[1]
        for batch in rows:
            views = torch.randint(num_views, (len(batch),), generator=generator)
            yield self.grids_NKVD[batch, views].float(), self.targets_NC[batch]


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
    def image_ids(self) -> tuple[str, ...]:
        """Id of each image."""
        return self.manifest.image_ids

    def batches(self, rows: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, H, W] with values in [0, 1], and targets [B, c]."""
        loader = DataLoader(
            _Decoded(self, seed),
            batch_sampler=[batch.tolist() for batch in rows],
            num_workers=self.num_processes,
            pin_memory=torch.cuda.is_available(),
        )
        for images_B3HW, rows_B in loader:
            yield images_B3HW, self.targets_NC[rows_B]

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """All images in the manifest's order, without targets."""
        rows = torch.arange(len(self.manifest)).split(batch_size)
        return (images_B3HW for images_B3HW, _ in self.batches(list(rows), seed=0))


class _Decoded(Dataset[tuple[Tensor, int]]):
    """One image by row; its augmentation follows from seed and row, whichever process decodes it."""

    def __init__(self, source: ImageFiles, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = open_image(self.source.manifest.uris[row])
        if self.source.augmentation is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1_000_003 + row)
                image = augment(image, self.source.augmentation)
        return self.source.encoder.transform(image), row
