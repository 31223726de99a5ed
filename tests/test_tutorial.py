"""The tutorial, executed as a reader would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def test_the_tutorial_holds_no_output() -> None:
    cells = [cell for cell in nbformat.read(TUTORIAL, as_version=4).cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tutorial_runs_to_its_end_and_finds_a_forgotten_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(TUTORIAL.parent.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(TUTORIAL, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = {
        cell.source: "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    said = "\n".join(printed.values())
    assert "Traceback" not in said and "cprfl: " not in said
    found = next(text for source, text in printed.items() if source.startswith("worst ="))
    name = found.split()[0]
    shown = nbformat.read(TUTORIAL, as_version=4)  # untouched by the execution
    assert shown.cells[0].cell_type == "markdown"
    assert name in {f"scene_{number:03d}.png" for number in range(240)}
    results = tmp_path / "outputs" / "tutorial"
    assert (results / "report.html").stat().st_size > 100_000
    assert name in (tmp_path / "photographs" / "labels.csv").read_text()
    assert "version 2" in next(text for source, text in reversed(printed.items()) if source.startswith("!cprfl run"))
