"""All checks of a trained and evaluated model."""

from __future__ import annotations

from collections.abc import Callable

from cprfl.report.baselines import LINEAR, ZERO_SHOT
from cprfl.report.checks import of_data as checks_of_data
from cprfl.report.checks import of_scores as checks_of_scores
from cprfl.report.checks.base import Check, Seen, Status
from cprfl.report.checks.overfitting import overfit

ORDER: tuple[Status, ...] = ("issue", "tip", "skipped", "passed", "not applicable")
"""In which checks are shown."""


def model_checks(seen: Seen) -> tuple[Check, ...]:
    """Look at everything that is known to spoil results; each check is there, however it came out, issues first."""
    found = [check(seen) for check in _CHECKS]
    return tuple(sorted(found, key=lambda check: ORDER.index(check.status)))


def _below_linear(seen: Seen) -> Check:
    return checks_of_scores.below_baseline(seen, "below-linear-baseline", LINEAR, "the logistic regression")


def _below_zero_shot(seen: Seen) -> Check:
    return checks_of_scores.below_baseline(seen, "below-zero-shot", ZERO_SHOT, "zero-shot")


_CHECKS: tuple[Callable[[Seen], Check], ...] = (
    checks_of_scores.epoch_chosen_on_test,
    checks_of_data.leak,
    checks_of_data.near_duplicates_across_splits,
    _below_linear,
    _below_zero_shot,
    checks_of_scores.hidden_by_mean,
    overfit,
    checks_of_scores.calibration_off,
    checks_of_scores.thresholds_fitted,
    checks_of_scores.threshold_at_edge,
    checks_of_data.few_test_positives,
    checks_of_data.untested_classes,
    checks_of_data.bad_images,
    checks_of_data.unknown_labels,
)
