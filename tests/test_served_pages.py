"""What `cprfl serve` and `cprfl schedule` show in a browser, from processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from playwright.sync_api import expect

from cprfl.experiment import load
from cprfl.inference.scoring import evaluate_checkpoint
from cprfl.preparation import prepare
from cprfl.recipe import train
from tests.browser import browser
from tests.helpers import command, free_ports, wait_for


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[str]:
    """A command that serves on a free port, until the block is left; the address."""
    (port,) = free_ports(1)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    with (folder / "served.txt").open("w") as log:
        process = subprocess.Popen(
            command(*words, "--port", str(port)), cwd=folder, env=environment, stdout=log, stderr=log
        )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: process.poll() is not None or answers(address), 240)
            assert process.poll() is None, (folder / "served.txt").read_text()
            yield address
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGINT)
            process.wait(60)
            for child in psutil.wait_procs(children, 30)[1]:
                child.kill()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def asked(address: str, image: bytes) -> dict[str, object]:
    request = urllib.request.Request(f"{address}/predict", image, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def test_an_image_is_dropped_on_the_page_and_many_clients_are_answered(
    small_config: Path, photos: Path, tmp_path: Path
) -> None:
    experiment = load(small_config)
    prepared = prepare(experiment)
    evaluate_checkpoint(experiment, prepared, train(experiment, prepared))
    image = sorted(photos.glob("**/*.png"))[0]
    with serving(tmp_path, "serve", str(experiment.folder / "checkpoint")) as address:
        with browser() as seen:
            seen.page.goto(address)
            expect(seen.page.locator("#model")).to_contain_text("small")
            seen.page.set_input_files("#file", image)
            bars = seen.page.locator("#bars li")
            expect(bars).to_have_count(len(prepared.manifest.class_names))
            for name in prepared.manifest.class_names:
                expect(seen.page.locator("#bars")).to_contain_text(name)
            bars.first.locator("button").click()
            expect(seen.page.locator("#caption")).to_contain_text("Where")
            seen.screenshot(tmp_path / "dropped.png")
            seen.page.goto(f"{address}/docs")
            expect(seen.page.locator("article", has_text="/predict").first).to_be_visible()
            seen.screenshot(tmp_path / "docs.png")
        assert not seen.errors
        assert all(url.startswith(address) for url in seen.requests)
        content = image.read_bytes()
        with ThreadPoolExecutor(8) as clients:
            found = list(clients.map(lambda _: asked(address, content), range(64)))
        assert all(answer.keys() == found[0].keys() for answer in found)
        with urllib.request.urlopen(f"{address}/health", timeout=10) as answer:
            assert json.load(answer)["model"]


@pytest.mark.slow
def test_dagster_shows_the_assets_with_their_checks_beside_an_experiment_with_a_typo(
    small_config: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump({**yaml.safe_load(small_config.read_text()), "name": "broken", "trian": {}}))
    schedules = tmp_path / "schedules.yaml"
    each = [{"config": str(path), "cron": "0 3 * * 1", "running": False} for path in (small_config, broken)]
    schedules.write_text(yaml.safe_dump({"schedules": each}))
    with serving(tmp_path, "schedule", "--schedules", str(schedules), "--output-dir", str(tmp_path)) as address:
        assert "did you mean 'train'" in (tmp_path / "served.txt").read_text()
        with browser(width=1500, height=1000) as seen:
            where = "/locations/__repository__@pipelines.retraining.definitions/asset-groups/small/lineage"
            seen.page.goto(address + where, timeout=120_000, wait_until="domcontentloaded")
            for asset in ("manifest", "image_features", "text_embeddings", "trained_model", "evaluation", "champion"):
                expect(seen.page.get_by_text(asset, exact=True).first).to_be_visible(timeout=90_000)
            expect(seen.page.get_by_text("Asset checks").first).to_be_visible(timeout=30_000)
            seen.screenshot(tmp_path / "graph.png")
            seen.page.goto(f"{address}/automation", wait_until="domcontentloaded")
            for name in ("broken", "small"):
                expect(seen.page.get_by_text(name).first).to_be_visible(timeout=60_000)
