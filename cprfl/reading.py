"""An experiment's annotations, read: with the splits that were dealt out before, and what a person should know said."""

from __future__ import annotations

import csv
import difflib
import sys
from pathlib import Path

from cprfl import progress
from cprfl.data.checks import same_bytes
from cprfl.data.files import fingerprint, read_record, write_aside, write_record
from cprfl.data.filesystems import is_remote
from cprfl.data.images import image_stamps
from cprfl.data.manifest import Manifest
from cprfl.errors import DatasetError
from cprfl.experiment import Experiment
from cprfl.plain import no_formula
from cprfl.words import counted

SAME_CONTENT = "same_content.csv"
_SHORT = 3  # letters of which any order may be a name
_FEW, _MANY, _ALIKE = 2, 5, 0.85  # images of a class that may be a slip, of one that is none, and how alike names are

_DEAL_ANEW = "remove it, and images are dealt out anew, those of an unchanged list as before"

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
        DatasetError: as `cprfl.data.readers.base.DatasetConfig.read`, and where that record is damaged.
    """
    dataset = experiment.dataset
    if say:
        progress.say(f"{experiment.name}: reading annotations ({dataset.name})")
    if dataset.split is None:
        manifest = dataset.read()
    else:
        record = _record(experiment)
        earlier = read_record(record, DatasetError, _DEAL_ANEW) if record.exists() else {}
        manifest = dataset.read(earlier)
        dealt = dict(zip(manifest.image_ids, manifest.splits, strict=True))
        if earlier | dealt != earlier:
            write_record(record, earlier | dealt)
    if say:
        for note in (*manifest.notes, *_misspelt(manifest), *_same_content(experiment, manifest)):
            print(f"note: {note}", file=sys.stderr)
    return manifest


def _misspelt(manifest: Manifest) -> list[str]:
    """That a class of one or two images has nearly the name of a class of many, if any has."""
    named = list(zip(manifest.class_names, manifest.positives.tolist(), strict=True))
    frequent = {name.casefold(): name for name, count in named if count >= _MANY}
    letters = {_letters(name): name for name in frequent}
    found = []
    for name, count in named:
        if not 0 < count <= _FEW or any(map(str.isdigit, name)):
            continue
        swapped = letters.get(_letters(name.casefold()))
        near = [swapped] if swapped else difflib.get_close_matches(name.casefold(), frequent, 1, _ALIKE)
        if near:
            found.append(
                f"class {name!r} ({counted(int(count), 'image')}) has nearly the name of {frequent[near[0]]!r}; where "
                "that is a slip, mend the annotations, or it is learned as a class of its own"
            )
    return found


def _letters(name: str) -> str:
    """The first letter, and all of them in their order: what names have in common of which two letters are swapped."""
    return f"{name[:1]}{''.join(sorted(name))}" if len(name) > _SHORT else name


def _same_content(experiment: Experiment, manifest: Manifest) -> list[str]:
    """That local files in two splits have the same bytes, if any have; all are listed in ``same_content.csv``."""
    table = experiment.folder / SAME_CONTENT
    table.unlink(missing_ok=True)  # of an earlier reading
    local = manifest.select([row for row, uri in enumerate(manifest.uris) if not is_remote(uri)])
    pairs = [
        (first, row)
        for first, *others in same_bytes(local, image_stamps(local.uris), across_splits=True)
        for row in others
        if local.splits[row] != local.splits[first]
    ]
    if not pairs:
        return []
    with write_aside(table) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "split", "same_as", "same_as_split"])
        for first, row in pairs:
            pair = (local.image_ids[row], local.splits[row], local.image_ids[first], local.splits[first])
            writer.writerow(map(no_formula, pair))
    first, row = pairs[0]
    return [
        f"{len(pairs)} images have the content of one in another split, such as {local.image_ids[row]!r} and "
        f"{local.image_ids[first]!r}; all: {table}"
    ]


def _record(experiment: Experiment) -> Path:
    key = fingerprint(experiment.dataset.model_dump(mode="json", exclude=_OF_LABELS))
    return experiment.cache_dir / "splits" / f"{key}.json"
