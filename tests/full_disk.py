"""Commands on a disk that is full at one point after the other, then with room: a process of its own, for it mounts.

Started by ``unshare -rm python -m tests.full_disk PLAN``; what came of each command goes to stdout as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines.cli.app import main

_ROOM = 65536  # KB


def _resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


def _used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def _call(words: list[str]) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["cprfl", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
    return {"status": status, "error": err.getvalue()}


def _try(outputs: Path, disk: Path, words: list[str], room: int) -> dict[str, Any]:
    """A command with so much room, and once more with enough."""
    words = [word.format(outputs=outputs) for word in words]
    _resize(disk, max(_used(disk) + room, 4))
    full = _call(words)
    _resize(disk, _ROOM)
    again = _call([*words, *(["--resume"] if words[0] == "tune" and "--resume" in full["error"] else [])])
    evaluation = outputs / "small" / "evaluation.json"
    return {"full": full, "again": again, "evaluation": evaluation.read_text() if evaluation.exists() else ""}


def _begin(plan: dict[str, Any], outputs: Path) -> None:
    """Outputs in a new place: MLflow keeps the database of an old one open."""
    for each in outputs.parent.iterdir():
        shutil.rmtree(each)
    (outputs / "mlflow").mkdir(parents=True)
    shutil.copy(plan["database"], outputs / "mlflow" / "mlflow.db")


def _all(plan: dict[str, Any]) -> dict[str, Any]:
    disk = Path(plan["disk"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOM}k", "tmpfs", str(disk)], check=True)
    results: dict[str, Any] = {}
    outputs = disk
    for room in [_ROOM, *plan["rooms"]]:
        outputs = disk / f"with_{room}"
        _begin(plan, outputs)
        results[f"run {room}"] = _try(outputs, disk, plan["run"], room)
    for words in plan["after"]:
        results[words[0]] = _try(outputs, disk, words, plan["room_after"])
    return results


if __name__ == "__main__":
    print(json.dumps(_all(json.loads(Path(sys.argv[1]).read_text()))))
