"""What tells a run from the others of its experiment: its name, and the settings that differ from the reference's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from cprfl.config import flatten
from cprfl.experiment import Experiment
from pipelines.tracking import registry
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.store import Store, client

PARENT, KIND = "mlflow.parentRunId", "cprfl.kind"
_NAME, _SHOWN = "mlflow.runName", 3
_OF_PLACE = {"name", "output_dir", "data_root", "feature_dir"}
_WITHOUT_EFFECT = ("resources.", "promotion.", "encoder.num_workers", "encoder.batch_size", "dataset.on_bad_image")


@dataclass(frozen=True)
class Difference:
    """How a run's settings differ from those of the run that it is compared with.

    Attributes:
        run_id: of that run: the champion's, or else the first of the experiment; none where there is none.
        name: of that run.
        settings: path to what it was there and is here, as text.
        data: whether the data set differs.
    """

    run_id: str | None = None
    name: str = ""
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    data: bool = False

    @property
    def in_words(self) -> str:
        """``epochs=12, lr=0.003``; empty where nothing differs."""
        shown = [f"{_short(path)}={rounded(here)}" for path, (_, here) in self.settings.items()]
        shown += ["other data"] if self.data else []
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return ", ".join(shown[:_SHOWN]) + more

    def as_tag(self) -> str:
        """As text that `of_tag` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def of_tag(cls, text: str) -> Difference:
        """What `as_tag` wrote."""
        values = json.loads(text)
        values["settings"] = {path: (there, here) for path, (there, here) in values["settings"].items()}
        return cls(**values)


def difference(store: Store, experiment: Experiment, digest: str | None) -> Difference:
    """How an experiment differs from the champion's run, or else from the first run of its MLflow experiment.

    Args:
        store: where those are.
        experiment: that is about to run.
        digest: of its data set, where that is known.
    """
    reference = _reference(store, experiment)
    if reference is None:
        return Difference()
    before, tags = reference.data.params, reference.data.tags
    here = {name: str(value) for name, value in parameters(experiment).items()}
    replaced = [path.removesuffix("name") for path in here if path.endswith(".name") and here[path] != before.get(path)]
    settings = {
        path: (before.get(path, "-"), value)
        for path, value in here.items()
        if value != before.get(path) and _counts(path) and not _belongs_to(path, replaced)
    }
    return Difference(
        reference.info.run_id, tags.get(_NAME, ""), settings,
        digest is not None
        and tags.get("dataset_digest") not in (None, digest)
        and "train.validation" not in settings,
    )  # fmt: skip


def title(experiment: Experiment, family: str, found: Difference) -> str:
    """The name of a run: a variant's own, or the experiment's with what differs."""
    if experiment.name != family:
        return experiment.name.removeprefix(f"{family}-")
    return f"{family} · {found.in_words}" if found.in_words else family


def parameters(experiment: Experiment) -> dict[str, Any]:
    """The experiment's settings by their paths, as they are logged."""
    return mlflow_names(flatten(experiment.model_dump(mode="json", exclude={"variants"})))


def in_short(settings: Mapping[str, Any]) -> str:
    """Settings in a line: ``gamma_neg=3.744 lr=0.0012``."""
    return " ".join(f"{_short(path)}={rounded(value)}" for path, value in settings.items())


def _reference(store: Store, experiment: Experiment) -> MlflowRun | None:
    experiment_id = store.experiment_id(experiment.name)
    family = client().get_experiment(experiment_id).name
    present = registry.champion(store, family)
    if present is not None:
        try:
            run = client().get_run(client().get_model_version(family, present).run_id)
        except MlflowException:  # it was deleted for good, or is of another store
            run = None
        if run is not None and run.info.lifecycle_stage == "active":
            return run
    runs = client().search_runs([experiment_id], order_by=["attributes.start_time ASC"], max_results=100)
    return next((run for run in runs if not {PARENT, KIND, "sweep", "benchmark"} & run.data.tags.keys()), None)


def _counts(path: str) -> bool:
    return path not in _OF_PLACE and not path.startswith(_WITHOUT_EFFECT)


def _belongs_to(path: str, sections: list[str]) -> bool:
    """Whether it is a setting of a component that was replaced, whose name says it all."""
    return any(path.startswith(section) and path != f"{section}name" for section in sections)


def _short(path: str) -> str:
    """The last part of a path that says something."""
    *sections, last = path.split(".")
    return sections[-1] if last == "name" and sections else last


def rounded(value: Any) -> str:
    """Numbers to four digits; anything else as it is."""
    try:
        return f"{float(value):.4g}" if not isinstance(value, bool) else str(value).lower()
    except (TypeError, ValueError):
        return str(value)
