"""Commands on a disk that is full at one point after the other, then with room: a process of its own, for it mounts.

Started by ``unshare -rm python -m tests.full_disk PLAN``; what came of each command goes to stdout as JSON. One process
makes all calls, and each goes on with what the ones before it left: that is what makes it cheap.
"""

from __future__ import annotations

import contextlib
import hashlib
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
_RESULTS = ("checkpoint/model.safetensors", "evaluation.json", "manifest.parquet")


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
    return {"status": status, "error": err.getvalue(), "printed": out.getvalue()}


def _results(outputs: Path) -> dict[str, str]:
    """Digests of the files that the experiment has at present."""
    found = ((name, outputs / "small" / name) for name in _RESULTS)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found if path.exists()}


def _try(outputs: Path, disk: Path, words: list[str], rooms: list[int]) -> dict[str, Any]:
    """A command with so much room, each time a little more, and once more with enough."""
    words = [word.format(outputs=outputs) for word in words]
    full = []
    for room in rooms:
        _resize(disk, max(_used(disk) + room, 4))
        full.append(_call(words))
    _resize(disk, _ROOM)
    again = _call([*words, *(["--resume"] if words[0] == "tune" and "--resume" in full[-1]["error"] else [])])
    again["printed"] = again["printed"].replace(str(outputs), "")
    return {"full": full, "again": again, "results": _results(outputs)}


def _all(plan: dict[str, Any]) -> dict[str, Any]:
    disk = Path(plan["disk"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOM}k", "tmpfs", str(disk)], check=True)
    results: dict[str, Any] = {}
    for place, calls in plan["places"].items():
        outputs = disk / place
        (outputs / "mlflow").mkdir(parents=True)
        shutil.copy(plan["database"], outputs / "mlflow" / "mlflow.db")
        results[place] = [_try(outputs, disk, words, rooms) for words, rooms in calls]
    return results


if __name__ == "__main__":
    print(json.dumps(_all(json.loads(Path(sys.argv[1]).read_text()))))
