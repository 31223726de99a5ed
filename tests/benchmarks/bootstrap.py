"""Intervals of average precision, ours against scikit-learn's weighted one a class and resample, in one process."""

from __future__ import annotations

import time

import numpy as np
from sklearn.metrics import average_precision_score

from cprfl.evaluation.intervals import bootstrap, drawn

IMAGES, CLASSES, MODELS, RESAMPLES = 5000, 80, 4, 200
_SAMPLED = 80  # calls of scikit-learn that are timed; all would take minutes


def benchmark() -> str:
    """Seconds of both, of the processor, and their ratio."""
    rng = np.random.default_rng(0)
    targets = (rng.random((IMAGES, CLASSES)) < np.geomspace(0.3, 0.001, CLASSES)).astype(np.float32)
    targets[0] = 1
    scores = {f"{model}": targets + rng.normal(size=targets.shape) for model in range(MODELS)}
    start = time.process_time()
    bootstrap(scores, targets, {}, resamples=RESAMPLES)
    ours = time.process_time() - start
    weights = next(drawn(IMAGES, 1, seed=0))[:, 0]
    start = time.process_time()
    for label in range(_SAMPLED):
        average_precision_score(targets[:, label], scores["0"][:, label], sample_weight=weights)
    theirs = (time.process_time() - start) / _SAMPLED * CLASSES * MODELS * RESAMPLES
    return (
        f"bootstrap, {IMAGES:,} images x {CLASSES} classes x {MODELS} models x {RESAMPLES} resamples: {ours:.1f} s, "
        f"scikit-learn {theirs:.0f} s, ratio {theirs / ours:.0f}"
    )


if __name__ == "__main__":
    print(benchmark())
