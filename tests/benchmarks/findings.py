"""``python -m tests.benchmarks.findings OUTPUTS``: how good label mistakes and what to label next are.

``OUTPUTS`` is a folder in which `cprfl run configs/demo.yaml --set output_dir=OUTPUTS` has run; docs/findings.md has
the tables. Shapes: N images, C classes, F features.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
from scipy.special import expit

from cprfl.data.manifest import Manifest
from cprfl.evaluation.metrics import average_precision
from cprfl.experiment import Experiment
from cprfl.models.logistic_regression import solve
from cprfl.models.pooled import pooled
from cprfl.out_of_fold import held_out_logits
from cprfl.preparation import Prepared, prepare
from cprfl.report.findings.label_next import label_next, standardised
from cprfl.report.findings.label_noise import confident_disagreement, out_of_fold_logits, pooled_features
from cprfl.report.findings.near_duplicates import similar_pairs
from cprfl.report.results import Results
from cprfl.training.loop import Worker

FIRST = 50
SHARE = 0.05  # of each class's labels that are taken away, and as many that are added
STRENGTH = 0.02  # of the quick learner's regularisation
TAIL = 20

Strategy = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def flipped(targets_NC: np.ndarray, seed: int, everywhere: bool = False) -> np.ndarray:
    """Targets with 5 % of each class's labels missed and as many added; or with 5 % of all entries, ``everywhere``."""
    rng, wrong_NC = np.random.default_rng(seed), targets_NC.copy()
    if everywhere:
        return np.where(rng.random(targets_NC.shape) < SHARE, 1 - targets_NC, targets_NC)
    for label in range(targets_NC.shape[1]):
        shown, hidden = (np.flatnonzero(targets_NC[:, label] == value) for value in (1, 0))
        wrong_NC[rng.choice(shown, rng.binomial(len(shown), SHARE), replace=False), label] = 0
        wrong_NC[rng.choice(hidden, rng.binomial(len(shown), SHARE), replace=False), label] = 1
    return wrong_NC


def rankings(logits_NC: np.ndarray, targets_NC: np.ndarray) -> dict[str, np.ndarray]:
    """How doubtful each label is, by ours and by cleanlab's rankings."""
    found = {"confident disagreement": confident_disagreement(logits_NC, targets_NC)}
    told_C = np.isfinite(logits_NC).all(axis=0)
    p_NC = expit(logits_NC[:, told_C]).clip(1e-6, 1 - 1e-6)
    labels = [np.flatnonzero(row).tolist() for row in targets_NC[:, told_C]]

    def whole(values_NC: np.ndarray) -> np.ndarray:
        result_NC = np.full(targets_NC.shape, -np.inf)
        result_NC[:, told_C] = values_NC
        return result_NC

    for method in ("self_confidence", "normalized_margin"):
        for adjusted in (False, True):
            score_NC = get_label_quality_scores_per_class(labels, p_NC, method=method, adjust_pred_probs=adjusted)
            found[f"cleanlab {method}{', adjusted' if adjusted else ''}"] = whole(-score_NC)
    score_NC = get_label_quality_scores_per_class(labels, p_NC)
    for way in ("prune_by_noise_rate", "confident_learning"):
        issue_NC = find_multilabel_issues_per_class(labels, p_NC, filter_by=way, n_jobs=1)
        found[f"cleanlab filter {way}"] = whole(np.where(issue_NC, 1 - score_NC, -score_NC))
    return found


def precision(doubt_NC: np.ndarray, targets_NC: np.ndarray, wrong_NC: np.ndarray, halves: bool) -> float:
    """Share of the first 50 that are wrong indeed; ``halves``: 25 of the given labels and 25 of the missing ones."""
    order = [np.where(targets_NC == value, doubt_NC, -np.inf) for value in (1, 0)] if halves else [doubt_NC]
    first = [np.argsort(-values, axis=None, kind="stable")[: FIRST // len(order)] for values in order]
    return float(wrong_NC.flat[np.concatenate(first)].mean())


def mistakes(
    title: str, targets_NC: np.ndarray, logits: Callable[[np.ndarray], np.ndarray], seeds: int, everywhere: bool
) -> str:
    """A table of precisions, mean and deviation over seeds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        noisy_NC = flipped(targets_NC, seed, everywhere)
        wrong_NC = noisy_NC != targets_NC
        for name, doubt_NC in rankings(logits(noisy_NC), noisy_NC).items():
            values = [precision(doubt_NC, noisy_NC, wrong_NC, halves) for halves in (False, True)]
            found.setdefault(name, []).append((values[0], values[1]))
    lines = [f"{title}, {seeds} seeds", "| ranking | first 50 | 25 given, 25 missing |", "|---|---|---|"]
    for name, values_S2 in found.items():
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(np.mean(values_S2, 0), np.std(values_S2, 0), strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def model_logits(experiment: Experiment, prepared: Prepared, training: Manifest, targets_NC: np.ndarray) -> np.ndarray:
    """Held-out logits [N, C] of the experiment's own method, trained on other labels, in 3 folds."""
    labels = tuple(tuple(np.flatnonzero(row).tolist()) for row in targets_NC)
    manifest = replace(training, labels=labels)
    worker = Worker(torch.device("cpu"))
    return held_out_logits(experiment, replace(prepared, manifest=manifest), 3, experiment.epochs, worker).numpy()


def random(p_NC: np.ndarray, _f: np.ndarray, _l: np.ndarray, _n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Any images: the baseline."""
    return rng.permutation(len(p_NC))[:100]


def _entropy(p_NC: np.ndarray) -> np.ndarray:
    p_NC = p_NC.clip(1e-7, 1 - 1e-7)
    return np.asarray(-(p_NC * np.log2(p_NC) + (1 - p_NC) * np.log2(1 - p_NC)))


STRATEGIES: dict[str, Strategy] = {
    "random": random,
    "uncertainty": lambda p, f, m, n, rng: np.argsort(-_entropy(p).mean(axis=1))[:100],
    "uncertainty x rarity": lambda p, f, m, n, rng: np.argsort(-(_entropy(p) @ (1 / (1 + n))))[:100],
    "diversity": lambda p, f, m, n, rng: rows_of(np.full_like(p, 0.5), f, m, np.zeros_like(n)),
    "uncertainty x rarity x diversity": lambda p, f, m, n, rng: rows_of(p, f, m, n),
}


def rows_of(p_NC: np.ndarray, features_NF: np.ndarray, labelled_MF: np.ndarray, counts_C: np.ndarray) -> np.ndarray:
    """Rows that `label_next` chooses."""
    return np.array([chosen.row for chosen in label_next(p_NC, features_NF, labelled_MF, counts_C, 100)])


def next_table(pooled_NF: np.ndarray, targets_NC: np.ndarray, training_N: np.ndarray, start: int, seeds: int) -> str:
    """Train on some training images, choose 100 of the others by each strategy, train on both, test."""
    scaled_NF, _ = standardised(pooled_NF, pooled_NF[:0])
    x_NF, y_NC, test_MF, test_MC = (
        scaled_NF[training_N].astype(float), targets_NC[training_N],
        scaled_NF[~training_N].astype(float), targets_NC[~training_N],
    )  # fmt: skip
    tail_C = y_NC.sum(axis=0) < TAIL
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(x_NF))
        labelled, pool = order[:start], order[start:]
        weight_CF, bias_C = solve(x_NF[labelled], y_NC[labelled], STRENGTH)
        p_NC = expit(x_NF[pool] @ weight_CF.T + bias_C)
        for name, strategy in STRATEGIES.items():
            rng = np.random.default_rng(1000 + seed)
            chosen = pool[strategy(p_NC, x_NF[pool], x_NF[labelled], y_NC[labelled].sum(axis=0), rng)]
            rows = np.concatenate([labelled, chosen])
            weight, bias = solve(x_NF[rows], y_NC[rows], STRENGTH)
            ap_C = 100 * average_precision(test_MF @ weight.T + bias, test_MC)
            values = np.nanmean(ap_C), np.nanmean(ap_C[tail_C]), y_NC[chosen][:, tail_C].sum()
            found.setdefault(name, []).append((float(values[0]), float(values[1]), float(values[2])))
    base_S3 = np.array(found["random"])
    lines = [
        f"{start} labelled, {seeds} seeds",
        "| chosen by | mAP | wins | tail mAP | wins | rare positives |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows3 in found.items():
        values_S3 = np.array(rows3)
        mean_3, gain_3 = values_S3.mean(axis=0), (values_S3 - base_S3).mean(axis=0)
        wins_3 = (values_S3 > base_S3).sum(axis=0)
        lines.append(
            f"| {name} | {mean_3[0]:.1f} ({gain_3[0]:+.1f}) | {wins_3[0]}/{seeds} | {mean_3[1]:.1f} ({gain_3[1]:+.1f}) "
            f"| {wins_3[1]}/{seeds} | {mean_3[2]:.1f} |"
        )
    return "\n".join(lines)


def of_20000_images() -> str:
    """The time of comparing 20,000 images, and of a matrix product of that size."""
    features_NF = np.random.default_rng(0).normal(size=(20_000, 512)).astype(np.float32)
    features_NF /= np.linalg.norm(features_NF, axis=1, keepdims=True)
    start = time.perf_counter()
    similar_pairs(features_NF)
    ours, start = time.perf_counter() - start, time.perf_counter()
    for block in np.array_split(features_NF, 20):
        block @ features_NF.T
    bare = time.perf_counter() - start
    return f"20,000 images of 512 features compared in {ours:.0f} s, {ours / bare:.1f} times the matrix product alone"


def main(outputs: str) -> None:
    """Print all tables."""
    folder = Path(outputs).absolute() / "demo"
    results = Results.read(folder)
    assert results.store is not None
    training, manifest = results.training, results.manifest
    targets_NC, features_NF = training.targets(), pooled_features(results.store, training)
    balanced = "5 % of each class's labels missed, as many added"

    def of_regression(noisy_NC: np.ndarray) -> np.ndarray:
        return out_of_fold_logits(features_NF, noisy_NC)

    print(mistakes(f"logistic regression, {balanced}", targets_NC, of_regression, 5, False))
    print(mistakes("logistic regression, 5 % of all entries flipped", targets_NC, of_regression, 5, True))
    experiment = results.experiment.model_copy(update={"output_dir": str(folder.parent)})
    prepared = prepare(experiment)

    @cache
    def of_both(seed: int) -> tuple[np.ndarray, np.ndarray]:
        noisy_NC = flipped(targets_NC, seed)
        return of_regression(noisy_NC), model_logits(experiment, prepared, training, noisy_NC)

    for name, weight in (("CPRFL", 1.0), ("the mean of both", 0.5)):
        seeds = iter(range(3))  # `mistakes` asks for them in this order

        def mixed(_: np.ndarray, seeds: Iterator[int] = seeds, weight: float = weight) -> np.ndarray:
            regression_NC, model_NC = of_both(next(seeds))
            return (1 - weight) * regression_NC + weight * model_NC

        print(mistakes(f"{name}, {balanced}", targets_NC, mixed, 3, False))
    row_of = {image_id: row for row, image_id in enumerate(manifest.image_ids)}
    pooled_NF = np.empty((len(manifest), 2 * results.store.grid_shape[1]), dtype=np.float32)
    for batch in results.store.iter_batches(256, views="plain"):
        pooled_NF[[row_of[image_id] for image_id in batch.image_ids]] = pooled(batch.grid_BVD.float()).numpy()
    for start in (100, 200):
        print(next_table(pooled_NF, manifest.targets(), np.array(manifest.splits) == "train", start, 10))
    print(of_20000_images())


if __name__ == "__main__":
    main(sys.argv[1])
