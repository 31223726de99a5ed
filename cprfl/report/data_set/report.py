"""A data set as a person wants to see it before anything is encoded: `DataReport`, and how it is found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cprfl.data.checks import missing_images, same_bytes, where_it_may_be
from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import StoreKey
from cprfl.data.images import BadImage, image_stamps
from cprfl.data.manifest import Groups, Manifest
from cprfl.data.readers.base import DatasetConfig
from cprfl.errors import FeatureStoreError
from cprfl.experiment import Experiment
from cprfl.preparation import PREPARED, read_preparation
from cprfl.report.data_set.alike import Alike, alike, near_pairs
from cprfl.report.data_set.labels import LabelFacts, label_facts
from cprfl.report.data_set.scan import Scan, scan
from cprfl.report.findings.label_noise import Suspect, suspects

SUSPECTS = 20


@dataclass(frozen=True)
class Listed:
    """An image as the data set lists it, with the names of its labels."""

    image_id: str
    uri: str
    split: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Sized:
    """An image and its size in pixels."""

    image: Listed
    width: int
    height: int


@dataclass(frozen=True)
class Copies:
    """Images that show the same picture.

    Attributes:
        images: at least two.
        same_bytes: whether their files are the same.
        contradictory: names of the classes that some of them show and others do not.
    """

    images: tuple[Listed, ...]
    same_bytes: bool
    contradictory: tuple[str, ...]

    @property
    def leaks(self) -> bool:
        """Whether they are in more than one split."""
        return len({image.split for image in self.images}) > 1


@dataclass(frozen=True)
class ImageFacts:
    """What opening every image told.

    Attributes:
        bad: images that do not decode.
        smallest: the image of the fewest pixels; none where no image decodes.
        largest: the image of the most pixels.
        elongated: images that are much longer than wide, or the other way round.
        tiny: images with hardly any pixels.
        one_colour: images that show nothing.
    """

    bad: tuple[BadImage, ...]
    smallest: Sized | None
    largest: Sized | None
    elongated: tuple[Sized, ...]
    tiny: tuple[Sized, ...]
    one_colour: tuple[Listed, ...]


@dataclass(frozen=True)
class DataReport:
    """What there is to know of a data set.

    Attributes:
        name: of the experiment.
        dataset: how the data set is read.
        num_images: of all splits.
        groups: thresholds of head, medium and tail.
        labels: what the labels say.
        notes: what the reader decided.
        missing: images whose files are not there.
        elsewhere: where they may be, if all of them are missing.
        images: what opening them told; none where they were not opened.
        copies: images that are the same; those scaled or compressed again are found where images were opened.
        suspects: labels that look wrong, the worst first; none where there are no features to tell by.
        no_suspects: why there are none.
    """

    name: str
    dataset: DatasetConfig
    num_images: int
    groups: Groups
    labels: LabelFacts
    notes: tuple[str, ...]
    missing: tuple[BadImage, ...]
    elsewhere: str | None
    images: ImageFacts | None
    copies: tuple[Copies, ...]
    suspects: tuple[Suspect, ...] | None
    no_suspects: str | None

    @property
    def leaks(self) -> list[Copies]:
        """Pictures that are in more than one split."""
        return [copies for copies in self.copies if copies.leaks]

    @property
    def contradictions(self) -> list[Copies]:
        """Pictures whose copies have labels that contradict each other."""
        return [copies for copies in self.copies if copies.contradictory]

    @property
    def repetitions(self) -> list[Copies]:
        """Pictures that are several times in one split, and no more than that."""
        return [copies for copies in self.copies if not copies.leaks and not copies.contradictory]


def data_report(experiment: Experiment, manifest: Manifest, *, open_images: bool = True) -> DataReport:
    """Find out what there is to know of a data set; nothing is encoded.

    Args:
        experiment: names the data.
        manifest: what the data set says (`cprfl.reading.read_data`).
        open_images: whether every image is opened, which finds those that do not decode, and near duplicates.

    Raises:
        StorageError: where the images' storage cannot be reached.
    """
    stamps = image_stamps(manifest.uris)
    missing = missing_images(manifest, stamps)
    absent = {image.image_id for image in missing}
    there = [row for row, image_id in enumerate(manifest.image_ids) if image_id not in absent]
    seen = scan(manifest, there if open_images else [], experiment.encoder.reading)
    found = alike(len(manifest), same_bytes(manifest, stamps), seen.rows[near_pairs(seen.small_NSS3)])
    store = _features(experiment, manifest, stamps)
    return DataReport(
        name=experiment.name,
        dataset=experiment.dataset,
        num_images=len(manifest),
        groups=manifest.groups,
        labels=label_facts(manifest),
        notes=manifest.notes,
        missing=tuple(missing),
        elsewhere=None if there else where_it_may_be(missing[0].uri, experiment.data_root),
        images=_image_facts(manifest, seen) if open_images else None,
        copies=tuple(_copies(manifest, group) for group in found),
        suspects=None if isinstance(store, str) else suspects(manifest, store, SUSPECTS),
        no_suspects=store if isinstance(store, str) else None,
    )


def _features(experiment: Experiment, manifest: Manifest, stamps: Sequence[tuple[int, ...]]) -> FeatureStore | str:
    """The features that the experiment's last preparation made or found, if they are of these images; else why not.

    No encoder is built for that: its weights may have to be downloaded.
    """
    if experiment.train.moves_tower:
        return f"train.backbone: {experiment.train.backbone} keeps no features to look for label noise with"
    record = experiment.folder / PREPARED
    features = read_preparation(record)["features"] if record.exists() else None
    if features is None:
        return "no features yet: `cprfl preprocess CONFIG` makes them"
    try:
        store = FeatureStore.open(features)
    except FeatureStoreError as error:
        return str(error)
    images = tuple(zip(manifest.image_ids, manifest.uris, stamps, strict=True))
    if store.description["image_list"] != StoreKey(images, encoder="", views=1).image_list_digest:
        return "images were added, removed or changed since features were made: `cprfl preprocess CONFIG` makes theirs"
    return store


def _listed(manifest: Manifest, row: int) -> Listed:
    names = tuple(manifest.class_names[label] for label in manifest.labels[row])
    return Listed(manifest.image_ids[row], manifest.uris[row], manifest.splits[row], names)


def _copies(manifest: Manifest, group: Alike) -> Copies:
    shown = set[int]().union(*(manifest.labels[row] for row in group.rows))
    agreed = shown.intersection(
        *({*manifest.labels[row], *(manifest.unknown[row] if manifest.unknown else ())} for row in group.rows)
    )
    return Copies(
        tuple(_listed(manifest, row) for row in group.rows),
        group.same_bytes,
        tuple(manifest.class_names[label] for label in sorted(shown - agreed)),
    )


def _image_facts(manifest: Manifest, seen: Scan) -> ImageFacts:
    size_of = dict(zip(seen.rows.tolist(), seen.sizes_N2.tolist(), strict=True))

    def sized(row: int) -> Sized:
        return Sized(_listed(manifest, row), *size_of[row])

    smallest, largest = map(sized, seen.extremes) if seen.extremes else (None, None)
    return ImageFacts(
        bad=seen.bad,
        smallest=smallest,
        largest=largest,
        elongated=tuple(sized(row) for row in seen.elongated.tolist()),
        tiny=tuple(sized(row) for row in seen.tiny.tolist()),
        one_colour=tuple(_listed(manifest, row) for row in seen.one_colour.tolist()),
    )
