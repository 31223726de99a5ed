"""The bootstrap against scikit-learn, its pairing, and what classes are confused with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cprfl.evaluation.confusion import confusions
from cprfl.evaluation.intervals import bootstrap, drawn, weighted_precision
from cprfl.evaluation.metrics import average_precision


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans(), st.booleans())
def test_weighted_precision_is_scikit_learns(seed: int, images: int, tied: bool, unknown: bool) -> None:
    rng = np.random.default_rng(seed)
    scores_NC = rng.integers(0, 4, (images, 3)).astype(float) if tied else rng.normal(size=(images, 3))
    targets_NC = (rng.random((images, 3)) < 0.4).astype(float)
    targets_NC[rng.random((images, 3)) < 0.2 * unknown] = np.nan
    weights_NS = np.concatenate(list(drawn(images, 3, seed)), axis=1)
    assert (weights_NS.sum(axis=0) == images).all()
    ours_SC = weighted_precision(scores_NC, targets_NC, weights_NS)
    for (row, label), value in np.ndenumerate(ours_SC):
        known_N = ~np.isnan(targets_NC[:, label])
        weight_N, shown_N = weights_NS[known_N, row], targets_NC[known_N, label] > 0
        if (weight_N * shown_N).sum() == 0:
            assert np.isnan(value)
        else:
            expected = average_precision_score(shown_N, scores_NC[known_N, label], sample_weight=weight_N)
            assert value == pytest.approx(expected)


def example(images: int = 300) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A model, one that sees less, and targets of which the last class is rare and some are unknown."""
    rng = np.random.default_rng(0)
    targets = (rng.random((images, 4)) < [0.4, 0.2, 0.1, 0.03]).astype(float)
    noise = rng.normal(size=targets.shape)
    targets[:5, 1] = np.nan
    truth = np.nan_to_num(targets)
    return {"good": truth + 0.5 * noise, "bad": truth + 1.5 * noise}, targets


GROUPS = {"head": np.array([0, 1]), "tail": np.array([2, 3]), "medium": np.array([], dtype=int)}


def test_values_are_those_of_all_images_and_lie_in_their_intervals() -> None:
    scores, targets = example()
    found = bootstrap(scores, targets, GROUPS)
    assert list(found.groups) == ["total", "head", "tail"]
    for name, values in scores.items():
        precision = 100 * average_precision(values, targets)
        for group, classes in found.groups.items():
            mean = found.mean(name, group)
            assert mean is not None
            assert mean.value == pytest.approx(precision[classes].mean())
            assert mean.low <= mean.value <= mean.high
        assert [one.value for one in found.classes(name) if one] == pytest.approx(precision.tolist())
    gain = found.gain("good", "bad")
    assert gain is not None
    assert gain.above_zero
    back = found.gain("bad", "good")
    assert back is not None
    assert back.below_zero
    assert (back.low, back.high) == pytest.approx((-gain.high, -gain.low))


def test_intervals_are_paired_and_deterministic() -> None:
    scores, targets = example()
    alike = {"one": scores["bad"], "scaled": 3 * scores["bad"] + 1}
    found = bootstrap(alike, targets, GROUPS, seed=4)
    assert [(one.value, one.low, one.high) for one in found.class_gains("one", "scaled") if one] == [(0, 0, 0)] * 4
    assert found.mean("one") == bootstrap(alike, targets, GROUPS, seed=4).mean("one")
    assert found.mean("one") != bootstrap(alike, targets, GROUPS, seed=5).mean("one")


def test_a_class_that_no_image_shows_has_no_interval() -> None:
    scores, targets = example()
    targets[:, 2:] = 0
    found = bootstrap(scores, targets, GROUPS)
    assert found.mean("good", "tail") is None
    assert found.gain("good", "bad", "tail") is None
    assert [one is None for one in found.classes("good")] == [False, False, True, True]


def test_fewer_images_make_wider_intervals() -> None:
    def width(images: int) -> float:
        found = bootstrap(*example(images), GROUPS).mean("bad")
        assert found is not None
        return found.high - found.low

    assert width(100) > 1.5 * width(1600)


def test_false_positives_show_what_a_class_is_taken_for() -> None:
    names = ("square", "circle", "star")
    rng = np.random.default_rng(1)
    targets = (rng.random((200, 3)) < [0.1, 0.2, 0.5]).astype(float)
    targets[targets[:, 1] == 1, 0] = 0
    scores = rng.normal(scale=0.1, size=targets.shape) + targets
    scores[:, 0] = np.maximum(targets[:, 0], 0.9 * targets[:, 1]) + rng.normal(scale=0.01, size=200)
    (found,) = confusions([0], scores, scores > 0.5, targets, names)
    assert found.false_positives == int(targets[:, 1].sum())
    assert found.looked_at == 30
    assert found.misses == 0
    assert found.found_instead == ()
    first = found.shown_instead[0]
    assert (first.class_name, first.share, first.images) == ("circle", 1.0, 30)
    assert first.lift == pytest.approx(1 / targets[targets[:, 0] == 0, 1].mean())
    # Where nothing is falsely found, the images that come the nearest are looked at.
    (none,) = confusions([0], scores, np.zeros_like(scores, dtype=bool), targets, names, first=10)
    assert (none.false_positives, none.looked_at, none.shown_instead[0].class_name) == (0, 10, "circle")
    assert none.misses == int(targets[:, 0].sum())


def test_what_is_unknown_is_neither_a_false_positive_nor_a_miss() -> None:
    targets = np.array([[1, np.nan], [np.nan, 1], [0, 1], [0, 1], [0, 0]])
    found_NC = np.ones_like(targets, dtype=bool)
    (found,) = confusions([0], targets, found_NC, targets, ("a", "b"))
    assert (found.false_positives, found.misses) == (3, 0)
    assert [(one.class_name, one.images) for one in found.shown_instead] == []
    (missed,) = confusions([1], targets, ~found_NC, targets, ("a", "b"))
    assert (missed.false_positives, missed.misses) == (0, 3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_no_average_precision_is_said_to_lie_where_none_can(seed: int, positives: int) -> None:
    """Where positives are few, what ties add to the resamples is more than the value itself."""
    rng = np.random.default_rng(seed)
    targets = np.zeros((40, 1))
    targets[:positives] = 1
    found = bootstrap({"model": rng.normal(size=(40, 1))}, targets, {"total": np.array([0])})
    for interval in (found.mean("model"), *found.classes("model")):
        assert interval is not None
        assert 0 <= interval.low <= interval.value <= interval.high <= 100
