"""What is promised outside: the contract's page, the pages of all docstrings, the bill of materials, the version."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import cprfl

ROOT = Path(__file__).parent.parent
BY_DATE = {"fsspec", "packaging"}  # versions that are dates, and mean nothing
LOCK = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines())


def script(name: str) -> dict[str, Any]:
    """What a script of .ci defines, without running it."""
    return runpy.run_path(str(ROOT / ".ci" / name))


def test_the_contract_is_the_one_that_the_code_keeps() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == script("contract.py")["page"](), "stale: make api"


def test_the_contract_names_what_checks_rely_on() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    names = [
        "AsymmetricLoss(gamma_neg: ", "DistributionBalancedLoss(class_counts: ", ".from_published(state_dict: ",
        "average_precision(scores: ", "class_counts(manifest: ", ".iter_batches(batch_size: int",
        "cprfl benchmark CONFIG [--methods] [--seeds]", "cprfl preprocess CONFIG",
    ]  # fmt: skip
    for name in names:
        assert name in text


def test_a_change_of_a_signature_is_seen() -> None:
    found = script("contract.py")

    def before(logits: str, *, gamma: float = 2.0) -> None: ...
    def after(logits: str, *, gamma: float = 3.0) -> None: ...

    assert found["signature"](before) == "(logits: str, *, gamma: float = 2.0) -> None"
    assert found["signature"](before) != found["signature"](after)


def test_the_version_stands_in_the_changelog_and_in_what_is_installed() -> None:
    versions = re.findall(r"^## \[(\d[\d.]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == cprfl.__version__
    assert importlib.metadata.version("cprfl") == cprfl.__version__, "run make lint again: the installation is older"


def test_dependencies_are_bounded_and_the_lock_is_within() -> None:
    for text in importlib.metadata.requires("cprfl") or []:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        tool = requirement.marker is not None and '"dev"' in str(requirement.marker)
        operators = {found.operator for found in requirement.specifier}
        if name != "cprfl":
            assert tool or name in BY_DATE or operators & {"<", "=="}, text
            assert requirement.specifier.contains(LOCK[name]), text


@pytest.mark.slow
def test_the_pages_of_all_docstrings_are_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / ".ci" / "site.py", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Asymmetric" in (tmp_path / "cprfl" / "losses.html").read_text()
    modules = {path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "cprfl").rglob("*.py")}
    missing = {page for page in modules if page.name != "__init__.html" and not (tmp_path / page).is_file()}
    assert not missing


@pytest.mark.slow
def test_the_bill_of_materials_is_valid_and_has_the_locks_versions(tmp_path: Path) -> None:
    target = tmp_path / "sbom.cdx.json"
    subprocess.run([sys.executable, ROOT / ".ci" / "sbom.py", target], check=True, stdout=subprocess.DEVNULL)
    bill = json.loads(target.read_text())
    found = {part["name"].lower().replace("_", "-"): part["version"].partition("+")[0] for part in bill["components"]}
    assert {"torch", "ray", "mlflow", "pillow", "psycopg", "aiohttp"} <= found.keys()
    assert not {"pytest", "mypy", "moto", "pdoc"} & found.keys()
    assert {name: version for name, version in found.items() if version != LOCK[name].partition("+")[0]} == {}
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("cprfl", cprfl.__version__)
    direct = next(edges["dependsOn"] for edges in bill["dependencies"] if edges["ref"] == root["bom-ref"])
    assert any(name.startswith("torch==") for name in direct)
