"""A sweep in Ray Tune's and Optuna's words: its space, what searches it, what stops trials."""

from __future__ import annotations

from typing import Any

import optuna
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from pipelines.sweeps.config import SweepConfig


def space(sweep: SweepConfig) -> dict[str, Any]:
    """Ray Tune's distributions of a sweep's settings."""

    def sampled(name: str) -> Any:
        found = sweep.space[name]
        if found.uniform:
            return ray_tune.uniform(*found.uniform)
        if found.log:
            return ray_tune.loguniform(*found.log)
        if found.integer:
            return ray_tune.randint(found.integer[0], found.integer[1] + 1)
        return ray_tune.choice(found.choice)

    return {name: sampled(name) for name in sweep.space}


def searcher(sweep: SweepConfig) -> Any:
    """What proposes the settings of the next trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    start = [sweep.start] if sweep.start else None
    if sweep.search == "random" or sweep.scheduler == "pbt":
        return BasicVariantGenerator(random_state=sweep.seed, points_to_evaluate=start)
    return OptunaSearch(space(sweep), metric=sweep.metric, mode="max", seed=sweep.seed, points_to_evaluate=start)


def scheduler(sweep: SweepConfig, epochs: int) -> Any:
    """What stops trials early, or changes them; ``epochs`` is the length of a whole training."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="epoch", perturbation_interval=sweep.perturb_epochs, hyperparam_mutations=space(sweep),
            custom_explore_fn=lambda settings: {name: sweep.space[name].clipped(v) for name, v in settings.items()},
        )  # fmt: skip
    last = epochs * (sweep.folds or 1)

    class Asha(ASHAScheduler):
        """Stops no trial that is about to end: Ray Train would be killed while it gives back its workers' CPUs."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision: str = super().on_trial_result(tune_controller, trial, result)
            return self.CONTINUE if result["epoch"] >= last else decision

    grace = min(sweep.grace_epochs, epochs) if sweep.folds is None else epochs
    return Asha(time_attr="epoch", max_t=last, grace_period=grace, reduction_factor=sweep.reduction_factor)
