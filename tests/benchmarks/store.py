"""Extraction and feature store: speed against the bare way in the same run, memory and time as the store grows.

python -m tests.benchmarks.store ../shared/data
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from cprfl import preparation
from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import StoreInProgress, StoreKey
from cprfl.data.feature_store.shards import Features, write_shard
from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.encoders.base import ImageEncoder
from cprfl.experiment import Experiment, load
from cprfl.feature_cache import Fill, ShardDone, fill_here
from cprfl.losses import AsymmetricLoss
from cprfl.models import Facts, LinearProbe
from cprfl.training.config import TrainConfig
from cprfl.training.loop import Worker, fit
from cprfl.training.objective import Objective
from cprfl.training.sources import StoredFeatures

GRID, ROUNDS = (49, 512), 5


def filled(root: Path, rows: int) -> FeatureStore:
    """A store of random features."""
    images = tuple((f"{number:07d}", f"/{number}", (number,)) for number in range(rows))
    target = StoreInProgress(str(root), StoreKey(images, "random", 1), {"model": "random"})
    for number, chosen in enumerate(target.key.shards()):
        write_shard(target.folder, number, random_rows(chosen), [])
    return target.finish()


def random_rows(chosen: range) -> Features:
    """Features whose values a half can hold."""
    rng = np.random.default_rng(chosen.start)
    grid = rng.standard_normal((len(chosen), *GRID), dtype=np.float32).astype("<f2")
    ids = tuple(f"{number:07d}" for number in chosen)
    return Features(ids, np.zeros(len(chosen), np.int8), grid, grid[:, 0].copy())


def manifest_of(store: FeatureStore) -> Manifest:
    """All images of the store, with one label each."""
    ids = tuple(image_id for batch in store.iter_batches(1024) for image_id in batch.image_ids)
    return Manifest(tuple("abcdefgh"), ids, ids, ("train",) * len(ids), tuple((n % 8,) for n in range(len(ids))))


def reading_and_writing(folder: Path) -> str:
    """Gigabytes per second of our store and of NumPy's files, interleaved, and the ratios."""
    rows = 4096
    store = filled(folder / "store", rows)
    parts = [random_rows(range(start, start + 128)) for start in range(0, rows, 128)]
    array = np.concatenate([part.grid for part in parts])
    np.save(folder / "a.npy", array)
    table = pa.table({"f": pa.FixedShapeTensorArray.from_numpy_ndarray(array[:1024])})
    pq.write_table(table, folder / "typed.parquet", compression="none")

    def consume(shuffle: int | None) -> None:
        for batch in store.iter_batches(128, shuffle_seed=shuffle):
            batch.grid_BVD[0, 0, 0].item()

    def write_ours() -> None:
        target = StoreInProgress(str(folder / "written"), StoreKey((), "x", 1), {})
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda item: write_shard(target.folder, item[0], item[1], []), enumerate(parts)))

    def write_numpy_shards() -> None:
        (folder / "written").mkdir()
        for number, part in enumerate(parts):
            np.save(folder / "written" / f"{number}.npy", part.grid)

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "np.load": (lambda: np.load(folder / "a.npy"), array.nbytes),
        "`iter_batches`, in order, checksums compared": (lambda: consume(None), array.nbytes),
        "`iter_batches`, shuffled": (lambda: consume(1), array.nbytes),
        "a typed tensor column, whole": (
            lambda: pq.read_table(folder / "typed.parquet")["f"].combine_chunks().to_numpy_ndarray(), array.nbytes // 4,
        ),
        "np.save": (lambda: np.save(folder / "b.npy", array), array.nbytes),
        "np.save, a file for each shard": (write_numpy_shards, array.nbytes),
        "shards, written by two threads": (write_ours, array.nbytes),
    }  # fmt: skip
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3 * ROUNDS):  # what memory the kernel finds for a file makes single rounds differ tenfold
        for name, (way, size) in ways.items():
            shutil.rmtree(folder / "written", ignore_errors=True)
            (folder / "b.npy").unlink(missing_ok=True)
            start = time.perf_counter()
            way()
            speeds[name].append(size / (time.perf_counter() - start) / 1e9)
    lines = ["| way | GB/s | of NumPy's |", "|---|---|---|"]
    for name, values in speeds.items():
        base = speeds["np.save" if "written" in name or "save" in name else "np.load"]
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        lines.append(f"| {name} | {statistics.median(values):.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def training(folder: Path, rows: int, memory_mb: int) -> None:
    """Print seconds per image and peak memory of three epochs on a store of ``rows``; a process of its own."""
    store = FeatureStore.open(next(str(path) for path in (folder / str(rows)).iterdir()))
    manifest = manifest_of(store)
    source = StoredFeatures(manifest, store, memory_mb * 2**20)
    times = [time.perf_counter()]
    config = TrainConfig(epochs=3, batch_size=32)
    probe = LinearProbe.Config(standardize=False).build(Facts.of_text(torch.zeros(8, 1), GRID[1]))
    fit(Objective(probe, AsymmetricLoss(), config), source, config, seed=0, worker=Worker(torch.device("cpu")),
        on_epoch_end=lambda _: times.append(time.perf_counter()))  # fmt: skip
    status = Path("/proc/self/status").read_text()  # ru_maxrss would start from the parent's
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(1e3 * (times[-1] - times[1]) / 2 / rows, peak)


def growing(folder: Path) -> str:
    """Training on 2,000 and on 20,000 rows, with the default bound of features in memory and with none; medians."""
    lines = [
        "| rows of [49, 512] | features_in_memory_mb | training, ms per image | peak memory of the process, MB |",
        "|---|---|---|---|",
    ]
    for rows in (2_000, 20_000):
        filled(folder / str(rows), rows)
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for rows, memory_mb in [(2_000, 512), (20_000, 512), (2_000, 0), (20_000, 0)] * ROUNDS:
        command = [sys.executable, "-m", "tests.benchmarks.store", "--train", str(folder), str(rows), str(memory_mb)]
        per_image, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found.setdefault((rows, memory_mb), []).append((float(per_image), float(peak)))
    for (rows, memory_mb), values in found.items():
        times, peaks = zip(*values, strict=True)
        spread = f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
        lines.append(f"| {rows} | {memory_mb} | {spread} | {statistics.median(peaks):.0f} |")
    return "\n".join(lines)


class _Files(Dataset[torch.Tensor]):
    def __init__(self, uris: tuple[str, ...], encoder: ImageEncoder) -> None:
        self.uris, self.transform = uris, encoder.transform

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(open_image(self.uris[row]))


def bare_loop(uris: tuple[str, ...], encoder: ImageEncoder) -> float:
    """Images per second of a DataLoader and the model, after the first four batches."""
    loader = DataLoader(_Files(uris, encoder), batch_size=32, num_workers=2)
    start, seen = 0.0, 0
    with torch.inference_mode():
        for number, batch in enumerate(loader):
            encoder(batch).grid_BVD.half().numpy()
            if number == 3:
                start = time.perf_counter()
            elif number > 3:
                seen += len(batch)
    return seen / (time.perf_counter() - start)


def ours(experiment: Experiment, manifest: Manifest, fill: Fill) -> list[tuple[float, int]]:
    """Seconds since the start of our extraction, and images done by then, at the end of each shard."""
    start, moments = time.perf_counter(), [(0.0, 0)]

    def timed(*arguments: Any) -> Iterator[ShardDone]:
        for done in fill(*arguments):
            moments.append((time.perf_counter() - start, moments[-1][1] + done.images))
            yield done

    preparation.prepare(experiment, manifest=manifest, fill=timed)
    return moments


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Most memory of this process and all below it, in MB: the sum of proportional set sizes, every 5 s."""
    peak, stop = [0.0], threading.Event()

    def sample() -> None:
        while not stop.wait(5):  # reading them costs some hundredths of a second
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total / 1e6)

    thread = threading.Thread(target=sample)
    thread.start()
    yield peak
    stop.set()
    thread.join()


def extracting(folder: Path, data: Path, few: int, many: int) -> str:
    """Few and many photographs, in this process and on Ray: speed beside the bare loop in the same run, and memory."""
    from pipelines.cluster.extraction import fill_on_ray

    photos = sorted((data / "coco_mini" / "images").rglob("*.jpg"))
    (folder / "photos").mkdir()
    for number in range(many):
        target = folder / "photos" / f"{number:05d}.jpg"
        if number < few:
            shutil.copy(photos[number % len(photos)], target)
        else:
            os.link(folder / "photos" / f"{number % few:05d}.jpg", target)
    uris = tuple(map(str, sorted((folder / "photos").iterdir())))
    names = load("configs/coco_mini.yaml", [f"data_root={data.absolute()}"]).dataset.read().class_names
    whole = Manifest(names, tuple(uri[-9:] for uri in uris), uris, ("train",) * len(uris), ((0,),) * len(uris))
    base = [f"data_root={data.absolute()}", f"output_dir={folder}", "encoder.views=1"]
    encoder = load("configs/coco_mini.yaml", base).encoder.build(folder)
    bare = [bare_loop(uris[:few], encoder)]
    lines = [
        "| photographs, SqueezeNet, 224 px, rows of [49, 512] | s | peak memory of all processes, MB |",
        "|---|---|---|",
    ]
    rates = ["| images/s | |", "|---|---|"]
    for where, fill in (("in this process", fill_here), ("on Ray", fill_on_ray)):
        seconds: dict[int, float] = {}
        for rows in (few, many):
            experiment = load("configs/coco_mini.yaml", [*base, f"feature_dir={folder}/{where}{rows}"])
            with peak_memory() as peak:
                seconds[rows] = ours(experiment, whole.select(list(range(rows))), fill)[-1][0]
            lines.append(f"| {rows:,}, {where} | {seconds[rows]:.0f} | {peak[0]:.0f} |")
        running = (many - few) / (seconds[many] - seconds[few])
        bare.append(bare_loop(uris[:few], encoder))
        ratio = running / statistics.mean(bare[-2:])
        rates.append(f"| {where}, the {many - few:,} that the larger one has more | {running:.1f} ({ratio:.2f}) |")
    rates.append(f"| DataLoader with two processes and the model, beside both | {statistics.mean(bare):.1f} |")
    return "\n".join([*lines, "", *rates])


def main() -> None:
    """All tables, or one training for `growing`."""
    if sys.argv[1] == "--train":
        training(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photographs", type=int, nargs=2, default=(2_000, 20_000), metavar=("FEW", "MANY"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(reading_and_writing(Path(folder)), "\n", flush=True)
        print(growing(Path(folder)), "\n", flush=True)
        print(extracting(Path(folder), options.data, *options.photographs), flush=True)


if __name__ == "__main__":
    main()
