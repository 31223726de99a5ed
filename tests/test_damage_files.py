"""Each kind of file that we keep is what was written, or an error with its name and the mend."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cprfl.data.files import read_record, write_record
from cprfl.data.table_files import read_table, write_table
from cprfl.data.tensor_files import read_tensors, write_tensors
from cprfl.encoders.clip import embedded
from cprfl.errors import CheckpointError
from cprfl.models.base import Facts
from cprfl.training.checkpoint import (
    CheckpointInfo,
    TrainingState,
    load_facts,
    load_info,
    load_state,
    load_tower,
    load_weights,
    save_checkpoint,
)
from pipelines.tracking.sink import MetricsSink
from tests.damaging import DAMAGES, MEND, flip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that can be gone on with, and has a tower."""
    weights = {"method.head": torch.randn(3, 4), "tower.block": torch.randn(5).half()}
    state = TrainingState(weights, {"state": {0: {"step": torch.ones(())}}, "param_groups": []}, {"lr": 0.1}, {}, 2)
    info = CheckpointInfo({"name": "x"}, "key", ["red"], "encoder", "text", 2, {"train/loss": 0.5}, holds_tower=True)
    save_checkpoint(tmp_path / "epoch-000002", weights, Facts.of_text(torch.randn(1, 2), 2), info, state)
    return tmp_path / "epoch-000002"


READ: dict[str, Callable[[Path], object]] = {
    "checkpoint.json": load_info,
    "model.safetensors": load_weights,
    "tower.safetensors": load_tower,
    "facts.safetensors": load_facts,
    "resume.pt": load_state,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_part_of_a_checkpoint_is_compared_with_its_checksum(checkpoint: Path, damage: str) -> None:
    assert {path.name for path in checkpoint.iterdir()} == READ.keys()
    for name, read in READ.items():
        whole = str(read(checkpoint))
        content = (checkpoint / name).read_bytes()
        for seed in range(20):
            (checkpoint / name).write_bytes(DAMAGES[damage](content, random.Random(seed)))
            try:
                found = str(read(checkpoint))
            except CheckpointError as error:
                assert name in str(error) and MEND.search(str(error))
            else:
                assert found == whole and name == "checkpoint.json"  # a space that became a tab, for example
        (checkpoint / name).write_bytes(content)


def test_a_damaged_embedded_encoder_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "_train", lambda: {"weight": torch.arange(6.0)})
    path = embedded.embedded_weights(tmp_path)
    content = path.read_bytes()
    path.write_bytes(flip(content, random.Random(1)))
    assert embedded.embedded_weights(tmp_path).read_bytes() == content
    assert f"{path.name}: damaged" in capsys.readouterr().err


WORDS = st.text(max_size=8)
VALUES = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(WORDS, max_size=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.dictionaries(WORDS.filter("checksum".__ne__), VALUES, max_size=4), data=st.data())
def test_a_record_is_what_was_written_or_an_error(tmp_path_factory: Any, values: dict[str, Any], data: Any) -> None:
    path = tmp_path_factory.mktemp("record") / "r.json"
    write_record(path, values)
    content = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    assert read_record(path, CheckpointError, "again") == values
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    try:
        found = read_record(path, CheckpointError, "again")
    except CheckpointError:
        return
    assert found == values


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"[]", b"null", b'{"checksum": 3}', b'{"a": "\\ud800", "checksum": "x"}', b"\xff\xfe{}"]
)
def test_what_is_no_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"r\.json: damaged .*; do this"):
        read_record(tmp_path / "r.json", CheckpointError, "do this")
    (tmp_path / "folder.json").mkdir()
    for name, said in (("gone.json", "missing"), ("folder.json", "cannot be read")):
        with pytest.raises(CheckpointError, match=rf"{name}: {said}"):
            read_record(tmp_path / name, CheckpointError, "do this")


@pytest.mark.parametrize("seed", range(200))
def test_tensors_and_tables_are_what_was_written_or_an_error(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(True), "c": torch.zeros(0, 4).bfloat16(), "d": torch.ones(())}
    table = pa.table({"id": ["x", "y"], "scores": [[0.5], []]}).replace_schema_metadata(
        {"names": "xxh3_64:" + "0" * 16}
    )
    write_tensors(tmp_path / "t", tensors, {"said": "é", "a": "b"})
    write_table(tmp_path / "p", table)
    again, said = read_tensors(tmp_path / "t", CheckpointError, "again")
    assert said == {"said": "é", "a": "b"} and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert read_table(tmp_path / "p", CheckpointError, "again").to_pylist() == table.to_pylist()
    for name in ("t", "p"):
        damage = DAMAGES[rng.choice(list(DAMAGES))]
        (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes(), rng))
    with pytest.raises(CheckpointError, match="/t: "):
        read_tensors(tmp_path / "t", CheckpointError, "again")
    with pytest.raises(CheckpointError, match="/p: damaged"):
        read_table(tmp_path / "p", CheckpointError, "again")


def test_a_full_disk_leaves_nothing_half_and_says_so(tmp_path: Path, checkpoint: Path) -> None:
    big, whole = torch.randn(100_000), {path: path.read_bytes() for path in checkpoint.iterdir()}
    state = replace(load_state(checkpoint), model={"method.head": big})
    writers: dict[str, Callable[[], object]] = {
        "model.safetensors": lambda: write_tensors(checkpoint / "model.safetensors", {"a": big}),
        "checkpoint.json": lambda: write_record(checkpoint / "checkpoint.json", {"a": "x" * 100_000}),
        "table.parquet": lambda: write_table(checkpoint / "table.parquet", pa.table({"a": big.numpy()})),
        "resume.pt": lambda: save_checkpoint(
            tmp_path / "new", {}, load_facts(checkpoint), replace(load_info(checkpoint), holds_tower=False), state
        ),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        for write in writers.values():
            with pytest.raises(OSError, match="File too large"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == whole
    assert not (tmp_path / "new" / "checkpoint.json").exists()


@pytest.mark.parametrize(("damage", "sent"), [("a bit", 2), ("cut", 2), ("empty", 0), ("overwritten", 0), ("", 3)])
def test_damaged_unsent_lines_are_not_sent_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str, sent: int
) -> None:
    sink, got = MetricsSink("http://127.0.0.1:9", "run", str(tmp_path / "run.jsonl")), list[int]()
    monkeypatch.setattr("pipelines.tracking.sink.answers", lambda _: False)
    for step in range(3):
        sink.log({"train/loss": float("nan") if step else 0.5}, step)
    path = Path(sink.outbox)
    if damage:
        path.write_bytes(DAMAGES[damage](path.read_bytes(), random.Random(5)))

    class Client:
        def log_batch(self, _: str, metrics: list[Any]) -> None:
            got.extend(metric.step for metric in metrics)

    monkeypatch.setattr("pipelines.tracking.sink.client", lambda _: Client())
    sink.flush()
    assert len(got) <= 3 and (len(got) == sent or damage == "cut")
    assert (f"{path}: damaged" in (said := capsys.readouterr().err) and "--again" in said) == bool(damage)
    assert not path.exists()
