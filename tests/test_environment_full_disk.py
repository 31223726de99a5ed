"""A full disk in each stage: status 2, what and the mend; with room again, the same command gives the same result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import sweep_file, write_config

Found = dict[str, Any]
RUN = [8, 60, 300, 700, 2500]  # KB; it fails in one stage after the other, from MLflow to the registered model
FEW = [8, 40]


def can_mount() -> bool:
    done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True)
    return done.returncode == 0


def plan_of(folder: Path, photos: Path, database: Path) -> dict[str, Any]:
    """In each place, commands and the rooms that each is given before it has enough."""
    config = str(write_config(folder / "small.yaml", photos, database, train={"epochs": 2, "batch_size": 8}))
    sweep = str(sweep_file(folder / "sweep.yaml", trials=2))
    place = ["--set", "output_dir={outputs}"]
    changed = ["retrain", config, *place, "--set", "train.lr=0.004"]
    return {
        "disk": str(folder / "disk"),
        "database": str(database),
        "places": {
            "undisturbed": [(["run", config, *place], []), (changed, [])],
            "whole": [(["run", config, *place], RUN), (changed, [*FEW, 700])],
            "in_steps": [
                (["preprocess", config, *place], FEW),
                (["train", config, *place], [*FEW, 300]),
                (["evaluate", config, *place], FEW),
                (["report", "{outputs}/small"], [4]),
                (["tune", config, "--sweep", sweep, *place], [8]),
            ],
            "on_ray": [
                (["preprocess", config, *place], []),
                (["train", config, *place, "--set", "resources.num_workers=1"], [100, 400]),  # enough to get to Ray
            ],
        },
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, photos: Path, database: Path) -> dict[str, list[Found]]:
    """What came of each command, by place."""
    if not can_mount():
        pytest.skip("no user namespaces here: a full disk cannot be made")
    folder = tmp_path_factory.mktemp("full")
    (folder / "disk").mkdir()
    (folder / "plan.json").write_text(json.dumps(plan_of(folder, photos, database)))
    command = ["unshare", "-rm", sys.executable, "-m", "tests.full_disk", str(folder / "plan.json")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[Found]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_full_disk_is_said_and_loses_nothing(results: dict[str, list[Found]]) -> None:
    for place, calls in results.items():
        for number, found in enumerate(calls):
            assert found["again"]["status"] == 0, (place, number, found["again"]["error"][-2000:])
            for full in found["full"]:
                check_told(full, f"{place} {number}")
            assert all(full["status"] == 2 for full in found["full"][:1]), (place, number)
    run, retraining = results["undisturbed"]
    assert run["results"].keys() == {"checkpoint/model.safetensors", "evaluation.json", "manifest.parquet"}
    for whole, undisturbed in zip(results["whole"], (run, retraining), strict=True):
        assert whole["results"] == undisturbed["results"]
        assert whole["again"]["printed"] == undisturbed["again"]["printed"]
    for step in [*results["in_steps"][:4], *results["on_ray"]]:
        assert step["results"].items() <= run["results"].items()
    assert "checkpoint/model.safetensors" in results["on_ray"][1]["results"]
    assert any("training on 16 images" in full["error"] for full in results["on_ray"][1]["full"])
    assert results["in_steps"][3]["results"] == run["results"]


def check_told(full: dict[str, Any], where: str) -> None:
    """One line says what is full and how that is mended."""
    if full["status"] == 0:
        return
    assert (full["status"], "Traceback" in full["error"]) == (2, False), (where, full["error"][-3000:])
    last = full["error"].strip().splitlines()[-1]
    assert full["error"].count("cprfl: ") == 1, (where, full["error"])
    assert "No space left" in last or "disk is full" in last, (where, last)
    assert "make room" in last, (where, last)
    assert "/disk/" in last, (where, last)
