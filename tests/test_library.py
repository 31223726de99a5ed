"""The library without the rest: the code in README runs where Ray, MLflow, Dagster and typer are not installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITHOUT = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "mlflow", "dagster", "typer", "optuna", "psutil", "pipelines"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""


def blocks() -> list[str]:
    section = (ROOT / "README.md").read_text().partition("## As a library")[2]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_of_ten_lines(small_config: Path) -> None:
    training, _ = blocks()
    assert len([line for line in training.splitlines() if line]) <= 10
    lines = run(training.replace("configs/demo.yaml", str(small_config)).replace("_tail", "_head")).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["1", "2", "3", "4"]
    assert all(0 < float(value) <= 100 for value in lines[4].split())


def test_the_parts_by_themselves() -> None:
    _, parts = blocks()
    assert 0 < float(run(f"{parts}\nprint(loss.item())")) < 10


def test_the_command_says_what_it_needs() -> None:
    code = WITHOUT.replace(', "pipelines"', "") + "from pipelines.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "cprfl: the command line needs more than the library: pip install 'cprfl[pipelines]'"
    )


@pytest.mark.parametrize("module", ["cprfl.recipe", "cprfl.inference.scoring", "cprfl.inference.pyfunc"])
def test_every_room_is_imported_without_them(module: str) -> None:
    run(f"import {module}")
