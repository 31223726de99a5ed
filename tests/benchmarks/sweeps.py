"""A sweep of many tiny trainings: seconds that a trial costs beside its training, and how long MLflow's page takes.

``python -m tests.benchmarks.sweeps [TRIALS] [FOLDER]``
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from PIL import Image

from cprfl.data.manifest import TEST
from cprfl.experiment import load
from cprfl.preparation import prepare
from cprfl.reading import read_data
from cprfl.recipe import train_in
from pipelines.sweeps.config import load_sweep, trial_experiment
from pipelines.sweeps.tune import search
from pipelines.tracking.store import open_store
from tests.helpers import free_ports, sweep_file, wait_for, write_config

_TRAININGS = 5  # that are timed alone


def benchmark(trials: int, root: Path) -> str:
    """Seconds per trial with and without the sweep, and of the requests that MLflow's page of it makes."""
    photos = _photos(root / "photos")
    open_store(str(root / "empty"))
    config = write_config(root / "config.yaml", photos, root / "empty" / "mlflow" / "mlflow.db")
    experiment = load(config)
    sweep = load_sweep(sweep_file(root / "sweep.yaml", trials=trials, scheduler="none"), config, [])
    store, manifest = open_store(experiment.output_dir), read_data(experiment)
    tried = trial_experiment(experiment, sweep, {})
    prepared = prepare(tried, needs=[TEST])
    train_in(root / "warm", tried, prepared)
    start = time.monotonic()
    for number in range(_TRAININGS):
        train_in(root / f"alone-{number}", tried, prepared)
    alone = (time.monotonic() - start) / _TRAININGS
    start = time.monotonic()
    search(store, experiment, sweep, manifest)
    whole = time.monotonic() - start
    record = sorted((experiment.folder / "sweeps").glob("*/record/*.json"))
    told = [json.loads(path.read_text())["reports"][-1]["time"] / 1000 for path in record]
    each = (told[-1] - told[0]) / (len(told) - 1)
    pages = _pages(experiment.output_dir, store.experiment_id(experiment.name))
    return (
        f"{trials} trials in {whole:.0f} s: {each:.2f} s each once it runs, {alone:.2f} s of it the training, overhead "
        f"{each - alone:.2f} s ({whole / trials - alone:.2f} s with Ray's start, features and plots)\n{pages}"
    )


def _photos(folder: Path) -> Path:
    folder.mkdir()
    rng, rows = np.random.default_rng(0), ["image,labels"]
    for number in range(24):
        Image.fromarray(rng.integers(0, 255, size=(48, 64, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{';'.join(('a', 'b', 'c')[c] for c in {number % 3, number // 3 % 3})}")
    (folder / "train.csv").write_text("\n".join(rows[:17]) + "\n")
    (folder / "test.csv").write_text("\n".join([rows[0], *rows[17:]]) + "\n")
    return folder


def _pages(output_dir: str, experiment_id: str) -> str:
    """What the experiment's page asks a real server for, each request timed twice."""
    (port,) = free_ports(1)
    database = f"sqlite:///{output_dir}/mlflow/mlflow.db"
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--port", str(port),
         "--host", "127.0.0.1", "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: _answers(address))
        runs = {"experiment_ids": [experiment_id], "max_results": 100, "order_by": ["attributes.start_time DESC"],
                "run_view_type": "ACTIVE_ONLY"}  # fmt: skip
        lines, token = list[str](), None
        for page in range(1, 4):
            more: dict[str, str] = {"page_token": token} if token else {}
            seconds, answer = _timed(f"{address}/ajax-api/2.0/mlflow/runs/search", {**runs, **more})
            token = answer.get("next_page_token")
            lines.append(f"runs/search, page {page} of 100 runs: {seconds}, {len(json.dumps(answer)) / 1024:.0f} KiB")
            if not token:
                break
        chart = mlflow.MlflowClient().search_runs([experiment_id], max_results=200)
        ids = "&".join(f"run_ids={run.info.run_id}" for run in chart[:100])
        path = f"ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?{ids}&metric_key=val%2FmAP&max_results=320"
        seconds, _ = _timed(f"{address}/{path}", None)
        return "\n".join([*lines, f"a chart of 100 runs: {seconds}"])
    finally:
        server.terminate()
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2):
            return True
    except OSError:
        return False


def _timed(url: str, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    data = json.dumps(body).encode() if body is not None else None
    found = []
    for _ in range(2):
        start = time.monotonic()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.loads(answer.read())
        found.append(time.monotonic() - start)
    return f"{found[0]:.2f} s, then {found[1]:.2f} s", content


if __name__ == "__main__":
    chosen = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    print(benchmark(int(sys.argv[1]) if len(sys.argv) > 1 else 200, chosen))
