"""Average precision, ours against scikit-learn's: interleaved in one process, the same values, the ratio of times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score

from cprfl.evaluation import average_precision

SHAPES = [(50, 3), (1_000, 20), (5_000, 80), (5_000, 1_000), (100_000, 20)]
SHARES = [0.002, 0.05, 0.5]  # of the images that show a class
ROUNDS = 5


def benchmark() -> str:
    """A Markdown table: shapes, shares of positives, float32 and float64 scores, with and without ties."""
    lines = [
        "| images x classes | positives | scores | scikit-learn, ms | ours, ms | speed-up | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for share in SHARES:
            for kind in ("float32", "float64", "tied"):
                lines.append(_row(shape, share, kind))
    return "\n".join(lines)


def _row(shape: tuple[int, int], share: float, kind: str) -> str:
    rng = np.random.default_rng(0)
    targets = (rng.random(shape) < share).astype(np.float32)
    targets[0] = 1  # no class without positives, of which scikit-learn warns
    scores = rng.integers(0, 20, shape).astype(np.float32) if kind == "tied" else rng.normal(size=shape).astype(kind)

    def theirs() -> np.ndarray:
        return np.array([average_precision_score(targets[:, c], scores[:, c]) for c in range(shape[1])])

    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    values: dict[str, np.ndarray] = {}
    compared: list[tuple[str, Callable[[], np.ndarray]]] = [
        ("theirs", theirs), ("ours", lambda: average_precision(scores, targets)),
    ]  # fmt: skip
    for _ in range(ROUNDS):
        for name, run in compared:
            start = time.perf_counter()
            values[name] = run()
            times[name].append(time.perf_counter() - start)
    milliseconds = {name: 1000 * statistics.median(found) for name, found in times.items()}
    ratio = statistics.median(t / o for t, o in zip(times["theirs"], times["ours"], strict=True))
    error = float(np.abs(values["theirs"] - values["ours"]).max())
    return (
        f"| {shape[0]} x {shape[1]} | {100 * share:g} % | {kind} | {milliseconds['theirs']:.1f} "
        f"| {milliseconds['ours']:.1f} | {ratio:.1f}x | {error:.0e} |"
    )
