"""Few-shot episodes of multi-label data: some classes are novel, and a few images of them are all there is to learn.

As HP-DVAL evaluates (section IV; IEEE TIP 34, 2025, arXiv 2509.17747), with the way of drawing of LaSO (CVPR 2019):
K images per novel class, where an image counts for every novel class that it shows. Nothing here knows of features or
methods; `pipelines.stages.few_shot` trains and scores.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from cprfl.data.manifest import TRAIN, Manifest
from cprfl.errors import ConfigError, DatasetError


def split_classes(class_names: Sequence[str], novel: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Base and novel classes, both in the data set's order, whatever the order in which they were named.

    Args:
        class_names: of the data set.
        novel: which of them are novel; all others are base classes.

    Raises:
        ConfigError: for a name that is no class, for a single novel class or none, and where no base class is left.
    """
    for name in novel:
        if name not in class_names:
            close = difflib.get_close_matches(name, class_names, n=1, cutoff=0.5)
            some = f"{', '.join(class_names[:10])}{'...' if len(class_names) > 10 else ''}"
            hint = f"did you mean {close[0]!r}?" if close else f"classes: {some}"
            raise ConfigError(f"--novel: no class {name!r} in the data set; {hint}")
    chosen = set(novel)
    if len(chosen) < 2:
        raise ConfigError(
            f"--novel: {len(chosen)} class; every image of an episode shows one, so there is nothing to tell apart; "
            "name two or more"
        )
    base = tuple(name for name in class_names if name not in chosen)
    if not base:
        raise ConfigError(f"--novel: all {len(class_names)} classes are novel, and no base class is left; name fewer")
    return base, tuple(name for name in class_names if name in chosen)


def only_classes(manifest: Manifest, class_names: Collection[str]) -> Manifest:
    """The images that show one of these classes, with the labels of these alone; of every split.

    What else an image shows is forgotten: on an image of a base and a novel class the one is background to the other.

    Args:
        manifest: the data set, before anything was held out of it.
        class_names: which classes stay, in the manifest's order; names that it does not have are passed over.
    """
    named = replace(manifest.with_classes(class_names), whole_training=None)
    return named.select([row for row, own in enumerate(named.labels) if own])


def draw_support(targets: np.ndarray, shots: int, seed: int, episode: int) -> np.ndarray:
    """Rows of the images that an episode trains on: at least ``shots`` for each class, and none that could be spared.

    The classes are walked from the rarest to the most frequent; one that the images drawn so far do not show often
    enough gets random further ones. As these may show the classes before too, images without which every class still
    has enough are left out again, the earliest drawn first. Of two classes and one shot a single image that shows both
    may be left, which tells nothing apart.

    Args:
        targets: multi-hot [n, c] of the images to draw from, NaN where nobody knows; each class has ``shots`` at least.
        shots: K.
        seed: of all episodes.
        episode: its number; the draw follows from seed, K and number.

    Returns:
        Ascending rows, int64 [between shots and c * shots].
    """
    shown_NC = np.asarray(targets) > 0
    rng = np.random.default_rng([seed, shots, episode])
    drawn: list[int] = []
    free_N = np.ones(len(shown_NC), dtype=bool)
    for label in np.argsort(shown_NC.sum(axis=0), kind="stable"):
        missing = shots - int(shown_NC[drawn, label].sum())
        if missing > 0:
            drawn += rng.choice(np.flatnonzero(free_N & shown_NC[:, label]), size=missing, replace=False).tolist()
            free_N[drawn] = False
    count_C = shown_NC[drawn].sum(axis=0)
    needed = []
    for image in drawn:
        if (count_C[shown_NC[image]] > shots).all():
            count_C -= shown_NC[image]
        else:
            needed.append(image)
    return np.sort(np.array(needed, dtype=np.int64))


def episode_of(manifest: Manifest, shots: int, seed: int, episode: int) -> Manifest:
    """The manifest with the support images of an episode for its training split; the other splits stay.

    Args:
        manifest: of the novel classes alone (`only_classes`).
        shots: K.
        seed: of all episodes.
        episode: its number, see `draw_support`.

    Raises:
        DatasetError: where a class has fewer training images than K.
    """
    rows = np.flatnonzero(np.array(manifest.splits, dtype=str) == TRAIN)
    targets = manifest.split(TRAIN).targets()
    for name, count in zip(manifest.class_names, (targets > 0).sum(axis=0).tolist(), strict=True):
        if count < shots:
            raise DatasetError(
                f"split train: {count} images show {name!r}, and an episode of {shots} shots needs {shots}; "
                "lower --shots, or leave the class out of --novel"
            )
    keep = np.array(manifest.splits, dtype=str) != TRAIN
    keep[rows[draw_support(targets, shots, seed, episode)]] = True
    return manifest.select(np.flatnonzero(keep))
