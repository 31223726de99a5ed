"""Challenger against champion: the paired bootstrap, and each rule."""

from __future__ import annotations

import numpy as np

from cprfl.data.manifest import Groups
from cprfl.evaluation.comparison import Comparison, PromotionConfig, bootstrap_gains, compare
from cprfl.evaluation.metrics import evaluate

NAMES = ("cat", "dog", "yak")
COUNTS = np.array([200, 50, 5])


def judged(noise: float, champion_noise: float, worse_tail: float = 0.0, **rules: object) -> Comparison:
    """A comparison of two models that see the truth through more or less noise."""
    rng = np.random.default_rng(3)
    targets = (rng.random((300, 3)) < 0.3).astype(np.int64)
    base = rng.normal(size=targets.shape)
    new, old = targets + noise * base, targets + champion_noise * base
    new[:, 2] += worse_tail * rng.normal(size=300)
    challenger, champion = (evaluate(scores, targets, NAMES, COUNTS, Groups(100, 20)) for scores in (new, old))
    return compare(challenger, champion, new, old, targets, PromotionConfig.model_validate(rules))


def test_a_better_challenger_is_promoted_and_a_worse_one_is_not() -> None:
    better = judged(0.5, 0.8)
    assert better.promoted
    assert better.gain_interval[0] > 0
    assert better.share_better == 1.0
    worse = judged(0.8, 0.5)
    assert not worse.promoted
    assert "the rule asks for 0" in worse.reason
    assert worse.gain_interval[1] < 0


def test_each_rule_can_keep_the_champion() -> None:
    assert "the rule asks for 90" in judged(0.5, 0.8, min_gain=90.0).reason
    tail = judged(0.3, 0.8, worse_tail=3.0, min_gain=0.0, confidence=0.0)
    assert [objection.split()[0] for objection in tail.objections] == ["mAP_tail"]
    assert "AP of yak" in judged(0.5, 0.8, class_floors={"yak": 99.9}).reason
    same = judged(0.5, 0.5)
    assert same.share_better == 0
    assert [objection for objection in same.objections if "resamples" in objection]
    assert judged(0.5, 0.5, confidence=0.0).promoted


def test_the_bootstrap_is_paired_and_deterministic() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((50, 4)) < 0.3
    scores = rng.normal(size=(50, 4))
    assert not bootstrap_gains(scores, 3 * scores + 1, targets, 20, seed=0).any()
    other = rng.normal(size=(50, 4))
    first, again = (bootstrap_gains(scores, other, targets, 20, seed=1) for _ in range(2))
    assert (first == again).all()
    assert first.std() > 0
