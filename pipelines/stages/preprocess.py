"""`cprfl preprocess`: an experiment's data, extracted in this process or on Ray."""

from __future__ import annotations

from collections.abc import Collection

from cprfl.data.manifest import Manifest
from cprfl.experiment import Experiment
from cprfl.preparation import EncoderOnce, Prepared, prepare


def preprocess(
    experiment: Experiment,
    *,
    manifest: Manifest | None = None,
    needs: Collection[str] = (),
    encoder: EncoderOnce | None = None,
) -> Prepared:
    """Prepare an experiment's data; the arguments are those of `cprfl.preparation.prepare`."""
    if experiment.extracts_in_this_process:
        return prepare(experiment, manifest=manifest, needs=needs, encoder=encoder)
    from pipelines.cluster.extraction import fill_on_ray  # Ray, which takes seconds to import

    return prepare(experiment, manifest=manifest, needs=needs, encoder=encoder, fill=fill_on_ray)
