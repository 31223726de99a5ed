"""What CONTRIBUTING.md tells whoever adds a method, a loss or a reader, done as it stands there."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r'```python title="([^"]+)"\n(.*?)```', TEXT, re.DOTALL))
DIFFERENCES = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
TRAINING = """
import sys
from cprfl.experiment import load
from cprfl.inference.scoring import evaluate_checkpoint
from cprfl.preparation import prepare
from cprfl.recipe import train

experiment = load(sys.argv[1])
prepared = prepare(experiment)
losses = []
checkpoint = train(experiment, prepared, lambda epoch: losses.append(epoch.metrics["train/loss"]))
metrics = evaluate_checkpoint(experiment, prepared, checkpoint).metrics
print(type(experiment.dataset).__name__, losses[0], losses[-1], metrics["mAP"])
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with everything done to it."""
    folder = tmp_path_factory.mktemp("contribution")
    for name in ("cprfl", "pipelines", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for difference in DIFFERENCES:
        run(folder, "git", "apply", "-", text=difference)
    return folder


def run(folder: Path, *command: str | Path, text: str | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines_of_code(text: str) -> list[str]:
    """Lines that are neither imports nor docstrings nor blank."""
    tree = ast.parse(text)
    left: set[int] = {number for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (is_text or isinstance(node, ast.Import | ast.ImportFrom)):
            left -= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return [text.splitlines()[number - 1] for number in sorted(left)]


@pytest.mark.parametrize("name", FILES)
def test_an_example_has_about_ten_lines(name: str) -> None:
    assert len(lines_of_code(FILES[name])) <= 12


def test_one_example_each_for_a_method_a_loss_and_a_reader() -> None:
    assert [name.split("/")[1] for name in FILES] == ["models", "losses", "data"]
    assert len(DIFFERENCES) == 3


def test_the_reader_reads_the_method_trains_and_the_loss_falls(sources: Path, photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [line.partition(",") for line in (photos / f"{split}.csv").read_text().splitlines()[1:]]
        listed = [f"{photos / image}: {labels.replace(';', ',')}" for image, _, labels in rows]
        (tmp_path / f"{split}.txt").write_text("\n".join(listed) + "\n")
    config = tmp_path / "experiment.yaml"
    values = {
        "name": "mine",
        "data_root": str(tmp_path),
        "output_dir": str(tmp_path / "outputs"),
        "dataset": {"name": "colons", "splits": {"train": "train.txt", "test": "test.txt"}},
        "encoder": {"name": "torchvision", "model": "squeezenet1_1", "pretrained": "random", "image_size": 64},
        "text_encoder": {"name": "random", "dim": 16},
        "model": {"name": "prototypes"},
        "loss": {"name": "margin", "margin": 2},
        "train": {"epochs": 5, "batch_size": 8, "lr": 0.01},
    }
    config.write_text(yaml.safe_dump(values))
    reader, first, last, mean = run(sources, sys.executable, "-c", TRAINING, config).split()
    assert reader == "ColonsDataset"
    assert float(last) < float(first)
    assert 0 < float(mean) <= 100


@pytest.mark.slow
def test_the_tests_of_all_methods_and_losses_pass_with_them(sources: Path) -> None:
    modules = ("tests/test_methods.py", "tests/test_losses.py", "tests/test_unknown_losses.py")
    chosen = ("-k", "prototypes or [margin]", "-n", "0", "-q", "-p", "no:cacheprovider")
    passed = re.search(r"(\d+) passed", run(sources, sys.executable, "-m", "pytest", *modules, *chosen))
    assert passed is not None and int(passed[1]) >= 6
