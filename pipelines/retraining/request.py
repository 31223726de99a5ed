"""What a retraining is asked for, fixed together with the data that it was asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cprfl.data.files import read_record, write_record
from cprfl.data.manifest import TEST, Manifest
from cprfl.errors import CheckpointError, ConfigError
from cprfl.experiment import Experiment
from cprfl.preparation import Prepared, read_prepared
from cprfl.reading import read_data
from pipelines.request import request_key
from pipelines.stages.places import RETRAINING
from pipelines.stages.train import prepare_chain
from pipelines.sweeps.config import SweepConfig
from pipelines.tracking.store import Store

_READ, _DATASET, _REQUEST = "read.parquet", "dataset.parquet", "request.json"


@dataclass(frozen=True)
class Request:
    """A retraining that somebody asked for.

    Attributes:
        experiment: what to train.
        sweep: what to search around the champion's settings first.
        dataset: what the data set said then.
        prepared: the experiment's data then.
    """

    experiment: Experiment
    sweep: SweepConfig | None
    dataset: Manifest
    prepared: Prepared

    @property
    def key(self) -> str:
        """Of data, configuration, rules and sweep."""
        return request_key(self.experiment, self.prepared, self.sweep)

    def save(self) -> None:
        """Write it down for a later stage, which may run in another process."""
        folder = self.experiment.placed(RETRAINING).folder
        self.dataset.write(folder / _DATASET)
        values = {
            "experiment": self.experiment.model_dump(mode="json"),
            "sweep": self.sweep and self.sweep.model_dump(mode="json"),
            "prepared": self.prepared.record,
        }
        write_record(folder / _REQUEST, values)


def make_request(
    store: Store, experiment: Experiment, sweep: SweepConfig | None = None, manifest: Manifest | None = None
) -> Request:
    """Prepare the data of a retraining.

    Args:
        store: where what comes before the experiment is tracked.
        experiment: what to train.
        sweep: searched around the champion's settings first.
        manifest: what the data set says, where it has been read already.

    Raises:
        ConfigError: where a floor is for a class that the data does not have.
        UserError: as `cprfl.preparation.prepare`.
    """
    asked = experiment.placed(RETRAINING)  # what is in the folder of a model stays of that model
    manifest = read_data(asked) if manifest is None else manifest
    unknown = sorted(set(experiment.promotion.class_floors) - set(manifest.class_names))
    if unknown:
        raise ConfigError(f"promotion.class_floors: no class is named {', '.join(unknown)}")
    return Request(experiment, sweep, manifest, prepare_chain(store, asked, manifest, needs=[TEST]))


def load_request(experiment: Experiment) -> Request:
    """The request that was last saved for an experiment of this name.

    Raises:
        CheckpointError: where there is none, or it is damaged.
    """
    folder = experiment.placed(RETRAINING).folder
    values = read_record(folder / _REQUEST, CheckpointError, "start with the first stage of the retraining")
    asked = Experiment.model_validate(values["experiment"])
    sweep = SweepConfig.model_validate(values["sweep"]) if values["sweep"] else None
    return Request(asked, sweep, Manifest.read(folder / _DATASET), read_prepared(asked, values["prepared"]))


def dataset_file(experiment: Experiment) -> Path:
    """Where a retraining in stages keeps what the data set says, until a request is made of it."""
    return experiment.placed(RETRAINING).folder / _READ
