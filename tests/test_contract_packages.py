"""Wheel and sdist: what is in them, and that what they install works outside of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import cprfl

ROOT = Path(__file__).parent.parent
PACKAGES = ("cprfl", "pipelines")
PARTS = """
from pathlib import Path
import torch
import cprfl, pipelines
from cprfl.encoders.clip import create_clip
from cprfl.losses import AsymmetricLoss
from cprfl.models import CPRFL, Facts

here = Path(cprfl.__file__).parents[1]
assert Path(pipelines.__file__).parents[1] == here
model = CPRFL(CPRFL.Config(dim=16, num_heads=2, head_dim=8), Facts.of_text(torch.randn(3, 8), grid_dim=12))
print(here, AsymmetricLoss()(model(torch.randn(2, 4, 12)), torch.ones(2, 3)).item() > 0)
create_clip("cprfl-embedded", "random", None, Path())
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both, made from a copy of the sources: building writes beside them."""
    source, target = tmp_path_factory.mktemp("source") / "cprfl", tmp_path_factory.mktemp("dist")
    shutil.copytree(
        ROOT, source,
        ignore=shutil.ignore_patterns(".*", "outputs", "build", "dist", "docs", "__pycache__", "*.egg-info"),
    )  # fmt: skip
    run(source, sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source)
    return target


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints; nothing of this process's Python environment is seen by it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of_the_packages() -> set[str]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return {path.relative_to(ROOT).as_posix() for path in found if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"cprfl-{cprfl.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"cprfl-{cprfl.__version__}.dist-info/METADATA").decode()
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == files_of_the_packages()
    assert any(name.endswith("/licenses/LICENSE") for name in about)
    assert "License-Expression: Apache-2.0" in metadata


def test_the_sdist_has_what_building_needs_and_no_test(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_the_packages() <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "infra", "outputs"))]


@pytest.mark.parametrize("form", ["*.whl", "*.tar.gz"])
def test_what_is_installed_runs_without_the_checkout(form: str, built: Path, tmp_path: Path) -> None:
    """The dependencies are this environment's, behind what is installed; its editable installation is not seen."""
    (package,) = built.glob(form)
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", "bare")
    binaries = tmp_path / "bare" / "bin"
    own = Path(
        run(tmp_path, binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--quiet")
    run(tmp_path, *pip, "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", package)
    assert "retrain" in run(tmp_path, binaries / "cprfl", "--help")
    assert f"cprfl {cprfl.__version__}" in run(tmp_path, binaries / "cprfl", "--version")
    assert run(tmp_path, binaries / "python", "-c", PARTS).split() == [str(own), "True"]
