"""The feature store, in a folder and on S3: whole or not at all, damage is named, batches are the same for a seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cprfl.data.feature_store import FeatureStore, filling
from cprfl.data.feature_store.batches import Batch, Views
from cprfl.data.feature_store.filling import StoreInProgress, StoreKey, prune_unfinished
from cprfl.data.feature_store.shards import Features, write_shard
from cprfl.data.files import write_record
from cprfl.data.storage import Folder
from cprfl.errors import FeatureStoreError, StorageError
from pipelines.cli.app import app

SHAPE = (4, 3)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "ROWS_PER_SHARD", 10)


def key_of(num_images: int, views: int = 2) -> StoreKey:
    images = tuple((f"i{number:03d}", f"/images/{number}.jpg", (number, 1)) for number in range(num_images))
    return StoreKey(images, "encoder", views)


def rows_of(key: StoreKey, shard: int) -> Features:
    rng = np.random.default_rng(shard)
    ids = [key.images[image][0] for image in key.shards()[shard]]
    rows = len(ids) * key.views
    grid, global_features = rng.standard_normal((rows, *SHAPE)), rng.standard_normal((rows, 5))
    views = np.tile(np.arange(key.views, dtype=np.int8), len(ids))
    return Features(tuple(np.repeat(ids, key.views).tolist()), views, grid.astype("<f2"), global_features.astype("<f2"))


def fill(root: str, key: StoreKey) -> FeatureStore:
    target = StoreInProgress(root, key, {"model": "test"})
    for number in target.missing():
        write_shard(target.folder, number, rows_of(key, number), [])
    return target.finish()


def all_rows(batches: Iterator[Batch]) -> Batch:
    parts = list(batches)
    ids = tuple(image_id for part in parts for image_id in part.image_ids)
    return Batch(ids, *(torch.cat(tensors) for tensors in zip(*(part[1:] for part in parts), strict=True)))


def test_what_is_read_is_what_was_written(root: str) -> None:
    key = key_of(23)
    target = StoreInProgress(root, key, {"model": "test"})
    assert target.missing() == [0, 1, 2, 3, 4]
    store = fill(root, key)
    assert (len(store), store.num_images, store.views, store.grid_shape) == (46, 23, 2, SHAPE)
    rows = all_rows(store.iter_batches(7))
    expected = [rows_of(key, shard) for shard in range(5)]
    assert rows.image_ids == tuple(image_id for part in expected for image_id in part.image_ids)
    assert np.array_equal(rows.grid_BVD.numpy(), np.concatenate([part.grid for part in expected]))
    assert np.array_equal(rows.global_BE.numpy(), np.concatenate([part.global_features for part in expected]))
    store.verify()
    assert StoreInProgress(root, key, {}).finished
    assert not StoreInProgress(root, key_of(22), {}).finished


def test_an_unfinished_store_goes_on_with_the_missing_shards(root: str) -> None:
    key = key_of(23)
    target = StoreInProgress(root, key, {})
    for number in (3, 1):
        write_shard(target.folder, number, rows_of(key, number), [])
    with pytest.raises(FeatureStoreError, match="no finished feature store here; `cprfl preprocess CONFIG`"):
        FeatureStore.open(target.folder.uri)
    assert target.missing() == [0, 2, 4]
    assert fill(root, key).folder.files().keys() >= {"store.json"}


def test_any_request_that_differs_has_its_own_store() -> None:
    base = key_of(3)
    touched = StoreKey((*base.images[:2], ("i002", "/images/2.jpg", (2, 2))), "encoder", 2)
    others = [key_of(4), key_of(3, views=1), StoreKey(base.images, "other", 2), touched]
    assert len({key.fingerprint for key in (base, *others)}) == 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 12),
    world_size=st.integers(1, 4),
    views=st.sampled_from(["all", "plain", "random"]),
    seed=st.none() | st.integers(0, 5),
    buffer_bytes=st.sampled_from([1, 1_000, 10**9]),
)
def test_readers_share_the_rows(
    tmp_path: Path, batch_size: int, world_size: int, views: Views, seed: int | None, buffer_bytes: int
) -> None:
    key = key_of(23)
    target = StoreInProgress(str(tmp_path / "stores"), key, {})
    store = FeatureStore.open(target.folder.uri) if target.finished else fill(str(tmp_path / "stores"), key)

    def part(store: FeatureStore, rank: int) -> list[Batch]:
        return list(store.iter_batches(batch_size, shuffle_seed=seed, rank=rank, world_size=world_size, views=views,
                                       buffer_bytes=buffer_bytes))  # fmt: skip

    parts = [part(store, rank) for rank in range(world_size)]
    assert all(len(batch.image_ids) == batch_size for batches in parts for batch in batches[:-1])
    rows = all_rows(batch for batches in parts for batch in batches)
    counts = Counter(zip(rows.image_ids, rows.views_B.tolist(), strict=True))
    images = Counter(image_id for image_id, _ in counts)
    assert len(images) == 23
    assert set(images.values()) == ({2} if views == "all" else {1})
    if views == "plain":
        assert set(rows.views_B.tolist()) == {0}
    if seed is None:
        assert max(counts.values()) == 1
    else:
        lengths = {sum(len(batch.image_ids) for batch in batches) for batches in parts}
        assert len(lengths) == 1
        assert sum(counts.values()) - len(counts) < world_size
    kept = store.subset([image[0] for image in key.images], memory_bytes=10**9)
    for _ in range(2):  # the second time from memory
        again = all_rows(batch for rank in range(world_size) for batch in part(kept, rank))
        assert again.image_ids == rows.image_ids
        assert torch.equal(again.grid_BVD, rows.grid_BVD)
    everything = all_rows(store.iter_batches(50))
    place = {row: at for at, row in enumerate(zip(everything.image_ids, everything.views_B.tolist(), strict=True))}
    at = [place[row] for row in zip(rows.image_ids, rows.views_B.tolist(), strict=True)]
    assert torch.equal(everything.grid_BVD[at], rows.grid_BVD)
    assert torch.equal(everything.global_BE[at], rows.global_BE)


def test_shuffling_follows_the_seed_and_readers_read_their_own_shards_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(str(tmp_path), key_of(100))
    orders = [all_rows(store.iter_batches(8, shuffle_seed=seed)).image_ids for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    opened: list[set[int]] = []
    read = store.shard
    for rank in range(4):
        seen = set[int]()
        opened.append(seen)

        def noted(number: int, seen: set[int] = seen) -> Features:
            seen.add(number)
            return read(number)

        monkeypatch.setattr(store, "shard", noted)
        list(store.iter_batches(8, shuffle_seed=3, rank=rank, world_size=4))
    assert all(len(seen) <= 20 / 4 + 1 for seen in opened)


def test_a_subset_is_read_alone_and_unknown_images_are_named(tmp_path: Path) -> None:
    store = fill(str(tmp_path), key_of(23))
    some = store.subset(["i004", "i017", "i018"])
    assert all_rows(some.iter_batches(2, views="plain")).image_ids == ("i004", "i017", "i018")
    with pytest.raises(FeatureStoreError, match="no features of image 'elsewhere' and 0 others"):
        store.subset(["i004", "elsewhere"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), truncate=st.booleans())
def test_no_damage_passes_silently(tmp_path: Path, where: float, bit: int, truncate: bool) -> None:
    key = key_of(23)
    store = fill(str(tmp_path), key)
    name = store.description["shards"][2]["file"]
    path = Path(store.folder.uri) / name
    content = path.read_bytes()
    position = int(where * len(content))
    flipped = bytes([*content[:position], content[position] ^ (1 << bit), *content[position + 1 :]])
    path.write_bytes(content[:position] if truncate else flipped)
    with pytest.raises(FeatureStoreError, match=rf"{name}: damaged .*`cprfl features prune --features"):
        FeatureStore.open(store.folder.uri).shard(2)
    path.write_bytes(content)


def test_no_bit_of_a_footer_changes_unnoticed(tmp_path: Path) -> None:
    store = fill(str(tmp_path), key_of(5))
    path = Path(store.folder.uri) / store.description["shards"][0]["file"]
    content = path.read_bytes()
    for position in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content)):
        for bit in range(8):
            flipped = content[position] ^ (1 << bit)
            path.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
            with pytest.raises(FeatureStoreError, match="damaged shard"):
                store.shard(0)


def test_a_damaged_description_is_named_and_made_anew(tmp_path: Path) -> None:
    key = key_of(23)
    store = fill(str(tmp_path), key)
    path = Path(store.folder.uri) / "store.json"
    whole = path.read_text()
    for damaged in (whole.replace('"views"', '"vlews"'), whole.replace('"random"', '"ramdom"'), "[]", whole[:50]):
        if damaged == whole:
            continue
        path.write_text(damaged)
        with pytest.raises(FeatureStoreError, match=r"store\.json: damaged|format version"):
            FeatureStore.open(store.folder.uri)
    assert prune_unfinished(store.folder) == ["store.json"]
    target = StoreInProgress(str(tmp_path), key, {})
    shard = Path(target.folder.uri) / store.description["shards"][1]["file"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    with pytest.raises(FeatureStoreError, match=rf"{shard.name}: damaged shard"):
        target.finish()
    shard.write_bytes(content)
    target.finish().verify()


def test_what_is_wrong_is_named_and_pruned(root: str) -> None:
    key = key_of(23)
    store = fill(root, key)
    names = [shard["file"] for shard in store.description["shards"]]
    store.folder.write("notes.txt", b"mine")
    store.folder.write(names[1], store.folder.read(names[2]))
    with pytest.raises(FeatureStoreError, match=rf"(?s){names[1]}: damaged shard .*notes.txt: foreign file"):
        store.verify()
    assert sorted(store.prune()) == sorted([names[1], "notes.txt", "store.json"])
    assert StoreInProgress(root, key, {}).missing() == [1]
    store = fill(root, key)
    store.verify()
    store.folder.remove(names[3])
    with pytest.raises(FeatureStoreError, match=f"{names[3]}: shard missing"):
        FeatureStore.open(store.folder.uri)
    store = fill(root, key)
    store.folder.write("store.json", json.dumps(store.description | {"version": 1}).encode())
    with pytest.raises(FeatureStoreError, match="format version 1, this program reads 5"):
        FeatureStore.open(store.folder.uri)
    store.folder.write("store.json", b"{")
    with pytest.raises(FeatureStoreError, match="store.json: damaged"):
        FeatureStore.open(store.folder.uri)


def test_the_command_line_lists_verifies_and_prunes(tmp_path: Path) -> None:
    root = tmp_path / "cache" / "features"
    store = fill(str(root), key_of(23))
    write_record(tmp_path / "mine" / "prepared.json", {"features": store.folder.uri})
    other = fill(str(root), key_of(12))

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["features", *arguments, "--output-dir", str(tmp_path)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    listed = call("ls")
    assert "used by mine\n    test, 23 images x 2 views of [4, 3]" in listed
    assert "used by no experiment here\n    test, 12 images x 2 views of [4, 3]" in listed
    assert "2 stores are sound" in call("verify")
    folder = other.folder.uri
    first = sorted(Path(folder).glob("*.parquet"))[0]
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(FeatureStoreError, match=first.name):
        call("verify")
    del other  # or it would be in use
    assert "2 removed" in call("prune", Path(folder).name)
    assert "unfinished or damaged" in call("ls")
    assert f"kept {folder}: not finished" in call("prune", "--unused")
    assert f"removed {folder}" in call("prune", "--unused", Path(folder).name)
    assert [folder.name for folder in root.iterdir()] == [Path(store.folder.uri).name]
    with pytest.raises(FeatureStoreError, match="no store 'nothing' here"):
        call("verify", "nothing")


@pytest.mark.parametrize("program", ["pandas", "Polars", "DuckDB"])
def test_other_programs_open_a_store(tmp_path: Path, program: str) -> None:
    key = key_of(23)
    shards = f"{fill(str(tmp_path), key).folder.uri}/*.parquet"
    if program == "pandas":
        tables = [pd.read_parquet(path) for path in sorted(Path(shards).parent.glob("*.parquet"))]
        rows = [row for table in tables for row in table.itertuples(index=False, name=None)]
    elif program == "Polars":
        rows = pl.read_parquet(shards).rows()
    else:
        found = duckdb.sql(f"SELECT * FROM '{shards}' ORDER BY image_id, view")
        assert found is not None
        rows = found.fetchall()
    expected = [rows_of(key, shard) for shard in range(len(key.shards()))]
    assert [row[0] for row in rows] == [image_id for part in expected for image_id in part.image_ids]
    assert [row[1] for row in rows] == [view for part in expected for view in part.views.tolist()]
    grid = np.frombuffer(b"".join(row[2] for row in rows), "<f2").reshape(-1, *SHAPE)
    assert np.array_equal(grid, np.concatenate([part.grid for part in expected]))
    assert b"".join(row[3] for row in rows) == b"".join(part.global_features.tobytes() for part in expected)


def test_credentials_come_from_the_environment_and_reach_no_message(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(f"{bucket}/stores", key_of(3))
    assert "secret-key-of-the-tests" not in f"{store.description}{store.folder!r}{store.folder.__getstate__()}"
    with pytest.raises(StorageError, match=r"^s3://\.\.\.@bucket/x: no credentials in a URI") as caught:
        Folder("s3://key:hidden@bucket/x").files()
    assert "hidden" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=f"{bucket}/stores.*check the bucket") as caught:
        FeatureStore.open(f"{bucket}/stores/x")
    assert "key-of-the-tests" not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no credentials in the environment; set AWS_ACCESS_KEY_ID"):
        Folder(bucket).files()


def test_a_file_that_fails_half_way_is_not_there(root: str) -> None:
    folder = Folder(root)
    with pytest.raises(RuntimeError), folder.create("x") as file:
        file.write(b"half")
        raise RuntimeError
    assert folder.files() == {}
    folder.write("x", b"whole")
    assert folder.files() == {"x": 5}
    assert folder.read("x") == b"whole"


def test_other_filesystems_of_pyarrow_work(tmp_path: Path) -> None:
    store = fill(f"file://{tmp_path}/stores", key_of(7))
    assert FeatureStore.open(f"file://{store.folder.uri}").num_images == 7
    assert (Path(store.folder.uri) / "store.json").is_file()
