"""An experiment's annotations, read: with the splits that were dealt out before, and what a person should know said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cprfl.data.files import fingerprint, write_json
from cprfl.data.manifest import Manifest
from cprfl.experiment import Experiment

# Settings that do not choose which images there are.
_OF_LABELS = {
    "groups", "on_bad_image", "long_tail", "classes", "other_classes", "ignore_case", "classes_without_images",
    "repeated_images", "uncertain", "unmentioned",
}  # fmt: skip


def read_data(experiment: Experiment, *, say: bool = True) -> Manifest:
    """What the data set says; the reader's notes go to stderr, unless nothing is to be said.

    Where ``dataset.split`` deals images out, each stays where an earlier reading put it: the splits are kept beside
    the features, for all experiments on the same files. Without that record, images that are listed behind the others
    still move none of them.

    Raises:
        DatasetError: as `cprfl.data.readers.base.DatasetConfig.read`.
    """
    dataset = experiment.dataset
    if dataset.split is None:
        manifest = dataset.read()
    else:
        record = _record(experiment)
        earlier = json.loads(record.read_text()) if record.exists() else {}
        manifest = dataset.read(earlier)
        dealt = dict(zip(manifest.image_ids, manifest.splits, strict=True))
        if earlier | dealt != earlier:
            write_json(record, earlier | dealt)
    for note in manifest.notes if say else ():
        print(f"note: {note}", file=sys.stderr)
    return manifest


def _record(experiment: Experiment) -> Path:
    key = fingerprint(experiment.dataset.model_dump(mode="json", exclude=_OF_LABELS))
    return experiment.cache_dir / "splits" / f"{key}.json"
