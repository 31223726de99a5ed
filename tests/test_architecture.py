"""The rooms and the direction of their imports, and light imports on the command line's path."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import from the rooms on lines below its own, and from its own.
LEVELS = [
    {"cprfl.serving"},
    {"cprfl.predictor"},
    {"cprfl.experiment"},
    {"cprfl.comparison"},
    {"cprfl.training", "cprfl.evaluation", "cprfl.report"},
    {"cprfl.models", "cprfl.losses"},
    {"cprfl.encoders"},
    {"cprfl.data"},
    {"cprfl.config", "cprfl.errors", "cprfl.progress", "cprfl.torchvision_cpu"},
]


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(module: str) -> int | None:
    return next((i for i, rooms in enumerate(LEVELS) if any(f"{module}.".startswith(f"{r}.") for r in rooms)), None)


@pytest.mark.parametrize("path", sorted((ROOT / "cprfl").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    imported = imported_modules(path)
    assert not {name for name in imported if name.split(".")[0] in ("ray", "mlflow", "dagster", "pipelines")}
    own = level(module)
    assert own is not None or module == "cprfl", f"{module} is in no room"
    upward = {name for name in imported if (other := level(name)) is not None and own is not None and other < own}
    assert not upward


def test_the_help_page_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom pipelines.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'open_clip', 'pyarrow', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
