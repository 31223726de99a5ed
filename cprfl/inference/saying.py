"""What was fitted to the scores of held-out images, in words."""

from __future__ import annotations

import sys

from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import Experiment


def say(experiment: Experiment, decisions: Decisions) -> None:
    """Say on stderr on what decisions were fitted, and which classes they do not suit; or how to have some fitted."""
    if not decisions.source:
        print(
            f"{experiment.name}: no image was held out, so scores are not calibrated and every threshold is 0.5; "
            "train.validation: 0.2 holds some out, decisions.folds: 3 trains without each of 3 folds",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return
    print(f"{experiment.name}: thresholds fitted on {decisions.source}", file=sys.stderr, flush=True)
    if decisions.short:
        shown = ", ".join(decisions.short[:8]) + (" ..." if len(decisions.short) > 8 else "")
        wanted = f"{experiment.decisions.threshold} of {experiment.decisions.wanted:g}"
        print(f"{experiment.name}: no threshold gives a {wanted} to {shown}", file=sys.stderr, flush=True)
