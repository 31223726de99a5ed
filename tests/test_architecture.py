"""The rooms, the floors they stand on, no circle, and light imports on the command line's path."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import from the rooms on lines below its own, and from its own.
FLOORS = [
    {"pipelines.cli"},
    {"pipelines.submit"},
    {"pipelines.retraining", "pipelines.benchmark"},
    {"pipelines.sweeps"},
    {"pipelines.serving"},
    {"pipelines.stages"},
    {"pipelines.cluster"},
    {"pipelines.tracking"},
    {"pipelines.request", "pipelines.background", "pipelines.lock"},
    {"cprfl.report"},
    {"cprfl.inference"},
    {"cprfl.recipe"},
    {"cprfl.out_of_fold"},
    {"cprfl.assembly"},
    {"cprfl.preparation", "cprfl.starting"},
    {"cprfl.feature_cache", "cprfl.reading"},
    {"cprfl.experiment"},
    {"cprfl.training"},
    {"cprfl.models", "cprfl.losses"},
    {"cprfl.evaluation"},
    {"cprfl.encoders"},
    {"cprfl.data"},
    {"cprfl.resources"},
    {
        "cprfl.config",
        "cprfl.environment",
        "cprfl.errors",
        "cprfl.named_places",
        "cprfl.plain",
        "cprfl.progress",
        "cprfl.settings",
        "cprfl.torchvision_cpu",
        "cprfl.words",
    },
]
# Who may know what; `pipelines.sweeps` has what Ray Tune itself imports.
KNOWN_BY = {
    "mlflow": ["pipelines.tracking", "pipelines.serving.invocations"],
    "ray": [
        "pipelines.cluster",
        "pipelines.sweeps.beside",
        "pipelines.sweeps.search",
        "pipelines.sweeps.trials",
        "pipelines.sweeps.tuner",
    ],
    "dagster": ["pipelines.retraining.assets", "pipelines.retraining.server", "pipelines.retraining.shown"],
    "typer": ["pipelines.cli"],
    "altair": ["cprfl.report"],
    "jinja2": ["cprfl.report"],
    "vl_convert": ["cprfl.report"],
    "pandas": ["pipelines.tracking", "cprfl.inference.pyfunc"],
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("cprfl", "pipelines")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported_modules(path: Path, everywhere: bool = True) -> set[str]:
    """What a file imports; only what it imports at its top, unless ``everywhere``."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(module: str, rooms: list[str] | set[str]) -> bool:
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


def floor(module: str) -> int | None:
    return next((number for number, rooms in enumerate(FLOORS) if within(module, rooms)), None)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_only(module: str) -> None:
    imported, own = imported_modules(FILES[module]), floor(module)
    assert own is not None or module in ("cprfl", "pipelines"), f"{module} is in no room"
    upward = {name for name in imported if (other := floor(name)) is not None and own is not None and other < own}
    assert not upward
    if module.startswith("cprfl"):
        assert not within("pipelines", {name.split(".")[0] for name in imported})


@pytest.mark.parametrize("library", KNOWN_BY)
def test_a_library_is_known_in_its_room_only(library: str) -> None:
    users = {
        module for module, path in FILES.items() if within(library, {n.split(".")[0] for n in imported_modules(path)})
    }
    assert not {module for module in users if not within(module, KNOWN_BY[library])}


def test_no_module_is_in_a_circle_and_nothing_imports_what_dagster_loads() -> None:
    graph = {
        module: {name for name in imported_modules(path) if name in FILES and name != module}
        for module, path in FILES.items()
    }
    for module, found in graph.items():  # a package's own front is no part of the circle
        graph[module] = {name for name in found if not module.startswith(f"{name}.")}
    list(graphlib.TopologicalSorter(graph).static_order())
    assert not [module for module, found in graph.items() if "pipelines.retraining.definitions" in found]


def test_imports_inside_functions_have_a_reason() -> None:
    """The command line imports a room when a command needs it; elsewhere only what takes seconds comes late."""
    late = {
        module: imported_modules(path) - imported_modules(path, everywhere=False)
        for module, path in FILES.items()
        if not within(module, ["pipelines.cli"])
    }
    slow = {"open_clip", "torchvision", "timm", "huggingface_hub", "scipy"}
    slow |= {"pipelines.cluster", "pipelines.sweeps.tuner", "rich"}
    slow |= {"pandas", "typer"}  # which come with the pipelines, and not with the library
    assert not {module: names for module, found in late.items() if (names := {n for n in found if not within(n, slow)})}


def test_the_help_page_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom pipelines.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'open_clip', 'pyarrow', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_test_module_imports_another() -> None:
    for path in (ROOT / "tests").glob("test_*.py"):
        assert not {name for name in imported_modules(path) if name.startswith("tests.test_")}, path
