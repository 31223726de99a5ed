"""Fixtures: shared data where it is at hand, one Ray session, small experiments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, or a skip that says so."""
    if not (SHARED / "data").exists():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for the whole suite."""
    import ray

    from pipelines import cluster

    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test logs to a server that the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 24 small images of three classes: red, green or blue, some with two colours."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,labels"]
    for number in range(24):
        colours = sorted({number % 3, (number // 3) % 3})
        pixels = rng.integers(0, 60, size=(48, 64, 3), dtype=np.uint8)
        for half, colour in enumerate(colours):
            pixels[:, half * 32 : 64 if half == len(colours) - 1 else 32, colour] = 220
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{';'.join(('red', 'green', 'blue')[c] for c in colours)}")
    (folder / "train.csv").write_text("\n".join(rows[:17]) + "\n")
    (folder / "test.csv").write_text("\n".join([rows[0], *rows[17:]]) + "\n")
    return folder


@pytest.fixture
def small_config(tmp_path: Path, photos: Path) -> Path:
    """A configuration of the photos with a randomly initialised SqueezeNet: seconds to run."""
    values = {
        "name": "small",
        "data_root": str(photos),
        "output_dir": str(tmp_path / "outputs"),
        "dataset": {
            "name": "csv",
            "splits": {"train": "train.csv", "test": "test.csv"},
            "groups": {"head": 10, "tail": 8},
        },
        "encoder": {"name": "torchvision", "model": "squeezenet1_1", "pretrained": "random", "image_size": 64},
        "text_encoder": {"name": "random", "dim": 16},
        "model": {"name": "cprfl", "standardize": True, "dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32},
        "train": {"epochs": 4, "batch_size": 8, "lr": 0.003, "ema_decay": 0.9},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
