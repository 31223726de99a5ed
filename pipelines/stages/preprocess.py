"""`cprfl preprocess`: an experiment's data, extracted in this process or on Ray."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from cprfl.data.manifest import Manifest
from cprfl.data.storage import Folder
from cprfl.encoders.base import ImageEncoder
from cprfl.experiment import Experiment
from cprfl.feature_cache import ShardDone, ShardJob, fill_here
from cprfl.preparation import EncoderOnce, Prepared, prepare
from pipelines.lock import one_at_a_time


@one_at_a_time
def preprocess(
    experiment: Experiment,
    *,
    manifest: Manifest | None = None,
    needs: Collection[str] = (),
    encoder: EncoderOnce | None = None,
) -> Prepared:
    """Prepare an experiment's data; the arguments are those of `cprfl.preparation.prepare`."""
    return prepare(experiment, manifest=manifest, needs=needs, encoder=encoder, fill=_fill)


def _fill(
    jobs: Sequence[ShardJob], experiment: Experiment, encoder: ImageEncoder, folder: Folder
) -> Iterator[ShardDone]:
    """Make shards where that is sooner done (`cprfl.feature_cache.Fill`)."""
    if experiment.extracts_in_this_process(sum(len(job.image_ids) for job in jobs)):
        return fill_here(jobs, experiment, encoder, folder)
    from pipelines.cluster.extraction import fill_on_ray  # Ray, which takes seconds to import

    return fill_on_ray(jobs, experiment, encoder, folder)
