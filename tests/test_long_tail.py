"""Class counts, groups, the Pareto construction and stratified splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprfl.data.long_tail import ParetoConfig, class_counts, groups, hold_out, make_long_tailed, pareto_counts
from cprfl.data.manifest import Manifest
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.stratify import stratify
from cprfl.data.synthetic import SyntheticDataset, render_uri
from cprfl.errors import DatasetError
from tests.helpers import manifest_of


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_groups_share_out_all_classes(counts: list[int]) -> None:
    parts = groups(np.array(counts))
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(counts)))
    assert all(counts[i] >= 100 for i in parts["head"])
    assert all(counts[i] < 20 for i in parts["tail"])


def test_pareto_counts_fall_from_the_largest_to_near_the_smallest() -> None:
    counts = pareto_counts(20, ParetoConfig(max_count=800, min_count=1))
    assert counts[0] == 800  # pdf(1) = b, so the first class gets the whole range
    assert (np.diff(counts) <= 0).all()
    assert 1 <= counts[-1] < 10


def test_the_long_tail_is_a_subset_made_by_its_seed() -> None:
    pool = SyntheticDataset(pool=2000, num_test=50, long_tail=None).read()
    config = ParetoConfig(max_count=400, min_count=4)
    first, again = make_long_tailed(pool, config), make_long_tailed(pool, config)
    other = make_long_tailed(pool, config.model_copy(update={"seed": 1}))
    assert first == again != other
    assert set(first.image_ids) < set(pool.image_ids)
    assert first.split("test") == pool.split("test")
    counts = np.sort(class_counts(first))[::-1]
    assert counts[0] > 5 * counts[-1] > 0


def test_a_class_without_images_cannot_be_drawn() -> None:
    with pytest.raises(DatasetError, match="no training image of class 1"):
        make_long_tailed(manifest_of(np.array([[1, 0]])), ParetoConfig(max_count=1))


def test_the_embedded_set_is_long_tailed_and_deterministic() -> None:
    manifest = SyntheticDataset().read()
    sizes = {name: len(classes) for name, classes in groups(class_counts(manifest)).items()}
    assert sizes == {"head": 6, "medium": 11, "tail": 7}
    assert (len(manifest.split("train")), len(manifest.split("test"))) == (595, 400)
    uri = manifest.uris[3]
    assert np.array_equal(np.asarray(render_uri(uri)), np.asarray(render_uri(uri)))
    assert render_uri(uri).size == (96, 96)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 80), st.integers(2, 8), st.integers(0, 10_000))
def test_stratified_parts_keep_every_class_s_share(n: int, c: int, seed: int) -> None:
    targets = np.random.default_rng(seed).random((n, c)) < 0.3
    labels = [np.flatnonzero(row).tolist() for row in targets]
    part = stratify(labels, [0.75, 0.25], seed)
    assert abs((part == 1).sum() - n / 4) <= c + 1
    for label in range(c):
        assert abs(targets[part == 1, label].sum() - targets[:, label].sum() / 4) <= 0.15 * n + 1
    assert np.array_equal(part, stratify(labels, [0.75, 0.25], seed))


def test_groups_do_not_move_when_images_are_held_out(tmp_path: Path, shared: Path) -> None:
    lists = shared / "data" / "lists"
    whole = ListFilesDataset(labels=f"{lists}/coco_labels.txt", splits={"train": f"{lists}/coco_lt_train.txt"}).read()
    part = stratify(whole.labels, [0.8, 0.2], seed=0)
    held = hold_out(whole, part == 1)
    assert held.splits.count("val") == (part == 1).sum() > 300
    held.write(tmp_path / "m.parquet")
    for manifest in (held, Manifest.read(tmp_path / "m.parquet"), held.split("train"), held.split("val")):
        assert tuple(len(classes) for classes in groups(class_counts(manifest)).values()) == (22, 33, 25)
