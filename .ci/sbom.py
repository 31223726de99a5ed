"""Writes the bill of materials (CycloneDX 1.6) of what an installation of cprfl[pipelines,server] has: `make sbom`.

It lists the packages of the environment that runs it, without the workshop's tools, each with version, licence and what
it needs. The tool that lists them has an environment of its own: what it brings along makes jsonschema, and so each
process of Ray, take 1.4 s longer to import.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cprfl

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "build" / "sbom.cdx.json"
SHIPPED = "cprfl[pipelines,server]"
TOOL = "cyclonedx-bom"  # its version is in constraints.txt
VALID = """
import pathlib, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(JsonStrictValidator(SchemaVersion.V1_6).validate_str(pathlib.Path(sys.argv[1]).read_text()))
"""


def closure(wanted: str) -> set[str]:
    """Names of everything that a requirement brings with it, directly or not."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(wanted)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needed = map(Requirement, requires(name) or [])
            waiting += [found for found in needed if found.marker is None or found.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def tools(folder: Path) -> Path:
    """Where the tool's programs are, once it is installed below a folder."""
    venv.create(folder, with_pip=True)
    bin = folder / "bin"
    install = [bin / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", TOOL]
    subprocess.run(install, check=True)
    return bin


def bill(target: Path, bin: Path) -> dict[str, Any]:
    """Write the bill to a file with the tool's programs, have it judged by CycloneDX's schema, and return it."""
    command = [bin / "cyclonedx-py", "environment", sys.executable]
    options = ["--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "--sv", "1.6"]
    made = subprocess.run([*command, *options, "--no-validate"], capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(made)
    shipped = closure(SHIPPED)
    found["components"] = [part for part in found["components"] if canonicalize_name(part["name"]) in shipped]
    root = found["metadata"]["component"]
    root["version"] = cprfl.__version__
    kept = {part["bom-ref"] for part in [*found["components"], root]}
    found["dependencies"] = [
        {**edges, "dependsOn": [ref for ref in edges.get("dependsOn", []) if ref in kept]}
        for edges in found["dependencies"]
        if edges["ref"] in kept
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    subprocess.run([bin / "python", "-c", VALID, target], check=True)
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else TARGET
    with tempfile.TemporaryDirectory() as folder:
        made = bill(target, tools(Path(folder)))
    sys.stdout.write(f"{target}: {len(made['components'])} packages\n")
