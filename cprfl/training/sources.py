"""Where training and scoring get their batches: cached features, or images decoded on the fly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cprfl.data.feature_store import FeatureStore
from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.encoders.base import Encoded, ImageEncoder
from cprfl.errors import UnreadableImageError
from cprfl.training.augmentation import AugmentationConfig, augment
from cprfl.training.objective import Inputs
from cprfl.training.sampling import Sampler, class_aware_rows, occurrences

InOrder = Literal["scored", "plain"]
"""Of each image the rows whose logits are averaged (``encoder.crops``), or its plain view alone."""


class LabelledBatch(NamedTuple):
    """What one process works on in one step.

    Attributes:
        inputs: cached features in float16, or images uint8 [B, 3, H, W].
        targets_BC: multi-hot, float32; NaN where nobody knows.
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

    def in_order(
        self, batch_size: int, rank: int = 0, world_size: int = 1, views: InOrder = "scored"
    ) -> Iterator[LabelledBatch]:
        """Every image, shared among the workers, in an order that may be the storage's.

        An image with several scored rows has its id and targets at each of them; they may be in different batches, and
        with different workers.
        """


class StoredFeatures:
    """Cached features; of each image one view, drawn anew in every epoch.

    Args:
        manifest: the images and their labels.
        store: has features of all of them.
        memory_bytes: keep the features in memory if they fit into this; the batches are the same.
        sampler: which images make an epoch (`TrainConfig`).
    """

    def __init__(
        self, manifest: Manifest, store: FeatureStore, memory_bytes: int = 0, sampler: Sampler = "uniform"
    ) -> None:
        self.manifest, self.sampler = manifest, sampler
        self.store = store.subset(manifest.image_ids, memory_bytes)
        self._row = {image_id: row for row, image_id in enumerate(manifest.image_ids)}

    @property
    def num_images(self) -> int:
        """Images with features."""
        return self.store.num_images

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        """Shuffled by shards and within a bounded buffer of them."""
        store = self.store
        if self.sampler == "class_aware":
            ids = self.manifest.image_ids
            store = store.repeated([ids[row] for row in class_aware_rows(self.manifest.labels, seed)])
        for batch in store.iter_batches(
            batch_size, shuffle_seed=seed, rank=rank, world_size=world_size, views="random"
        ):
            yield self._labelled(batch.grid_BVD, batch.global_BE, batch.image_ids)

    def in_order(
        self, batch_size: int, rank: int = 0, world_size: int = 1, views: InOrder = "scored"
    ) -> Iterator[LabelledBatch]:
        """See `Source.in_order`: in the store's order."""
        for batch in self.store.iter_batches(batch_size, rank=rank, world_size=world_size, views=views):
            yield self._labelled(batch.grid_BVD, batch.global_BE, batch.image_ids)

    def _labelled(self, grid_BVD: Tensor, global_BE: Tensor, image_ids: Sequence[str]) -> LabelledBatch:
        rows = [self._row[image_id] for image_id in image_ids]
        return LabelledBatch(Encoded(grid_BVD, global_BE), torch.from_numpy(self.manifest.targets(rows)), image_ids)


class ImageFiles:
    """Images of a manifest, decoded when they are needed.

    Args:
        manifest: the images.
        encoder: whose transform makes the network's input.
        augmentation: what to do to a training image first.
        num_processes: that decode; 0 decodes in this one.
        sampler: which images make an epoch (`TrainConfig`).
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: ImageEncoder,
        augmentation: AugmentationConfig | None = None,
        num_processes: int = 0,
        sampler: Sampler = "uniform",
    ) -> None:
        self.manifest, self.transform = manifest, encoder.transform
        self.augmentation, self.num_processes, self.sampler = augmentation, num_processes, sampler

    @property
    def num_images(self) -> int:
        """Images of the manifest."""
        return len(self.manifest)

    def batches(self, batch_size: int, seed: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        """Shuffled over all images; the first ones come again where there are too few for the last worker."""
        if self.sampler == "class_aware":
            rows = class_aware_rows(self.manifest.labels, seed)
            # Which draw of its image it is decides the augmentation too, or the draws of an epoch would be equal.
            order = torch.from_numpy(rows + self.num_images * occurrences(rows))
        else:
            order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        order = torch.cat([order, order[: -self.num_images % world_size]])
        return self._decoded(order[rank::world_size].split(batch_size), _Training(self, seed))

    def in_order(
        self, batch_size: int, rank: int = 0, world_size: int = 1, views: InOrder = "scored"
    ) -> Iterator[LabelledBatch]:
        """See `Source.in_order`: in the manifest's order, in batches of so many rows if one image has no more."""
        own = torch.arange(self.num_images)[rank::world_size]
        per_image = self.transform.crops if views == "scored" else 1
        return self._decoded(own.split(max(1, batch_size // per_image)), _Unchanged(self, views))

    def _decoded(self, draws: Sequence[Tensor], images: Dataset[tuple[Tensor, int]]) -> Iterator[LabelledBatch]:
        loader = DataLoader(
            images,
            batch_sampler=[batch.tolist() for batch in draws if len(batch)],
            num_workers=self.num_processes,
            pin_memory=torch.cuda.is_available(),
        )
        try:
            for images_NK3HW, rows_N in loader:
                rows = rows_N.repeat_interleave(images_NK3HW.shape[1]).tolist()
                ids = [self.manifest.image_ids[row] for row in rows]
                yield LabelledBatch(images_NK3HW.flatten(0, 1), torch.from_numpy(self.manifest.targets(rows)), ids)
        except UnreadableImageError as error:  # of a process that decodes, with its traceback before it
            last = str(error).strip().splitlines()[-1]
            raise UnreadableImageError(last.split("UnreadableImageError: ")[-1]) from None

    def open(self, row: int) -> Image.Image:
        """The image of a row.

        Raises:
            UnreadableImageError: where it cannot be read any more.
        """
        uri = self.manifest.uris[row]
        try:
            return open_image(uri, self.transform.reading)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{uri}: {error}; it was readable when the run began") from None


class _Training(Dataset[tuple[Tensor, int]]):
    """One training image [1, 3, H, W] with its row, by the number of its draw.

    Draw i is of row i modulo the number of images; its augmentation follows from the seed and i, whichever process
    decodes it.
    """

    def __init__(self, source: ImageFiles, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, draw: int) -> tuple[Tensor, int]:
        row = draw % self.source.num_images
        image = self.source.open(row)
        if self.source.augmentation is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1_000_003 + draw)
                image = augment(image, self.source.augmentation)
        return self.source.transform(image)[None], row


class _Unchanged(Dataset[tuple[Tensor, int]]):
    """One image's scored rows, or its plain view, [K, 3, H, W] with its row."""

    def __init__(self, source: ImageFiles, views: InOrder) -> None:
        self.source, self.views = source, views

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image, transform = self.source.open(row), self.source.transform
        return transform.scored(image) if self.views == "scored" else transform(image)[None], row
