"""`cprfl check`: what may be wrong with a trained model's results."""

from __future__ import annotations

from cprfl.experiment import Experiment
from cprfl.preparation import PREPARED, read_preparation, read_prepared
from cprfl.report.baselines import write_baselines
from cprfl.report.checks.base import Check, Seen
from cprfl.report.checks.every import model_checks
from cprfl.report.results import BASELINES, Results


def check(experiment: Experiment) -> tuple[Check, ...]:
    """All checks of the results in the experiment's folder, issues first; baselines that are missing are scored first.

    Raises:
        CheckpointError: where nothing is trained or evaluated there.
        FeatureStoreError: where the cached features are gone.
    """
    results = Results.read(experiment.folder)
    if not (experiment.folder / BASELINES).exists():
        record = read_preparation(experiment.folder / PREPARED)
        write_baselines(experiment, read_prepared(experiment, record))
    return model_checks(Seen(results))
