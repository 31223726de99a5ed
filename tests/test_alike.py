"""Copies of images, however they were saved: within reach none is missed, and equal files are grouped."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cprfl.data.checks import same_bytes
from cprfl.data.images import image_stamps
from cprfl.report.data_set.alike import alike, near_pairs, perceptual_hashes
from tests.animals import manifest_of, photo


def test_copies_are_found_however_they_were_saved(tmp_path: Path) -> None:
    originals = [photo(number, (200, 150)) for number in range(40)]
    small = [np.asarray(image.resize((16, 16), Image.Resampling.BOX)) for image in originals]
    for number, image in enumerate(originals):
        image.resize((90, 60)).save(tmp_path / f"{number}.jpg", quality=50)
        again = Image.open(tmp_path / f"{number}.jpg").convert("RGB")
        small.append(np.asarray(again.resize((16, 16), Image.Resampling.BOX)))
    assert near_pairs(np.stack(small)).tolist() == [[number, number + 40] for number in range(40)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_no_pair_within_reach_is_missed(seed: int, flips: int) -> None:
    """Bands of the hashes find just the pairs that comparing all with all finds."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, size=(30, 16, 16, 3), dtype=np.uint8)
    noise = rng.integers(-flips, flips + 1, size=(90, 16, 16, 3))
    small = np.clip(base[rng.integers(0, 30, size=90)].astype(np.int16) + noise, 0, 255).astype(np.uint8)
    hashes = perceptual_hashes(small)
    near = {
        (i, j)
        for i, j in itertools.combinations(range(90), 2)
        if np.bitwise_count(hashes[i] ^ hashes[j]) <= 7
        and np.abs(small[i].astype(int) - small[j].astype(int)).mean() <= 10
    }
    assert groups(len(small), near) == groups(len(small), {(int(i), int(j)) for i, j in near_pairs(small)})


def groups(count: int, pairs: set[tuple[int, int]]) -> list[tuple[int, ...]]:
    return [found.rows for found in alike(count, [], np.array(sorted(pairs), dtype=np.int64))]


def test_a_thousand_copies_are_a_thousand_pairs() -> None:
    rng = np.random.default_rng(0)
    one, others = rng.integers(0, 256, size=(2, 3000, 16, 16, 3), dtype=np.uint8)
    pairs = near_pairs(np.concatenate([np.repeat(one[:1], 3000, axis=0), others]))
    assert len(pairs) == 2999


def test_same_files_are_grouped_within_and_across_splits(tmp_path: Path) -> None:
    for name, content in {
        "a": b"x" * 9000,
        "b": b"x" * 9000,
        "c": b"y" + b"x" * 8999,
        "d": b"x" * 9000,
        "e": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    manifest = manifest_of(tmp_path, [(name, "train" if name < "d" else "test", "") for name in "abcdef"])
    found = same_bytes(manifest, image_stamps(manifest.uris))
    assert found == [[0, 1, 3]]
    assert [(group.rows, group.same_bytes) for group in alike(6, found, np.array([[3, 4]]))] == [((0, 1, 3, 4), False)]
