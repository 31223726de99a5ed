"""A full disk in each stage: status 2, what and the mend; with room again, the same command gives the same result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import sweep_file, write_config

ROOMS = [0, 300, 700, 2500]  # KB; text embeddings, MLflow, a checkpoint, the registered model


def can_mount() -> bool:
    done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True)
    return done.returncode == 0


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, database: Path
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What came of each command."""
    if not can_mount():
        pytest.skip("no user namespaces here: a full disk cannot be made")
    folder = tmp_path_factory.mktemp("full")
    (folder / "disk").mkdir()
    config = str(write_config(folder / "small.yaml", photos, database))
    place = ["--set", "output_dir={outputs}"]
    sweep = str(sweep_file(folder / "sweep.yaml", trials=2))
    plan = {
        "disk": str(folder / "disk"),
        "database": str(database),
        "run": ["run", config, *place],
        "rooms": ROOMS,
        "after": [
            ["evaluate", config, *place],
            ["report", "{outputs}/small"],
            ["tune", config, "--sweep", sweep, *place],
        ],
        "room_after": 8,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    command = ["unshare", "-rm", sys.executable, "-m", "tests.full_disk", str(folder / "plan.json")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_full_disk_is_said_and_loses_nothing(results: dict[str, dict[str, Any]]) -> None:
    undisturbed = results["run 65536"]["evaluation"]
    assert undisturbed
    for name, result in results.items():
        assert "Traceback" not in result["full"]["error"], (name, result["full"]["error"][-2000:])
        assert result["again"]["status"] == 0, (name, result["again"]["error"][-2000:])
        assert result["evaluation"] == undisturbed or name == "tune", name
    said = {name: result["full"] for name, result in results.items() if result["full"]["status"] != 0}
    assert {f"run {room}" for room in ROOMS[:3]} <= said.keys()
    for name, full in said.items():
        assert full["status"] == 2, name
        last = full["error"].strip().splitlines()[-1]
        assert "No space left" in last or "disk is full" in last, (name, last)
        assert "make room" in last, (name, last)
