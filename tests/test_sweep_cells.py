"""A benchmark's cells: one that is done is not run again, one whose file is damaged is, saying so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from cprfl.data.files import write_record
from cprfl.experiment import load
from pipelines.benchmark.cells import RESULT, Cell, finished_cell


def test_a_damaged_cell_is_none_and_said_to_be(small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, cell = load(small_config), Cell({"mAP": 51.5}, {}, 3.0, 17, 200.0, 0.0, "key")
    assert finished_cell(experiment) is None
    path = experiment.folder / RESULT
    write_record(path, asdict(cell))
    assert finished_cell(experiment) == cell
    sound = path.read_bytes()
    assert capsys.readouterr().err == ""
    for damaged in (sound.replace(b"51.5", b"51.4"), sound[:50], b"", b"\xff\xfe", b"[]", b"{}"):
        path.write_bytes(damaged)
        assert finished_cell(experiment) is None
        assert RESULT in capsys.readouterr().err
