"""What names a request for a model: a version that was judged under it need not be trained again."""

from __future__ import annotations

from cprfl.config import Config
from cprfl.data.files import fingerprint
from cprfl.experiment import Experiment
from cprfl.preparation import Prepared


def request_key(experiment: Experiment, prepared: Prepared, sweep: Config | None = None) -> str:
    """Names what a version was trained and judged for: images, labels, configuration with its rules, and sweep."""
    rules = experiment.promotion.model_dump(mode="json")
    searched = sweep.model_dump(mode="json") if sweep else None
    return fingerprint([prepared.training_key(experiment), rules, searched])
