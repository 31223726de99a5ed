"""Scores of any number of images, by a checkpoint or a registered model, written as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from cprfl.data.checks import MISSING
from cprfl.data.images import BadImage, image_stamps
from cprfl.errors import BadImagesError, CheckpointError, UnreadableImageError
from cprfl.evaluation.decisions import Decisions
from cprfl.inference import outputs
from cprfl.inference.outputs import Write
from cprfl.inference.predictor import Predictor
from cprfl.inference.sources import find_images
from cprfl.inference.streaming import ScoredImage, stream_scores
from cprfl.progress import progress

_TOP = 5  # classes of the table, unless told otherwise


@dataclass(frozen=True)
class Wanted:
    """What is made of the scores.

    Attributes:
        top: classes to show per image.
        found_only: show only the classes whose threshold is reached.
        threshold: for all classes, instead of the model's own.
        as_json: print JSON instead of a table.
        csv: file to write.
        parquet: file to write.
        overlays: folder for pictures of where the model looks.
    """

    top: int | None = None
    found_only: bool = False
    threshold: float | None = None
    as_json: bool = False
    csv: Path | None = None
    parquet: Path | None = None
    overlays: Path | None = None

    @property
    def prints(self) -> bool:
        """Whether scores go to the terminal: always, unless they go into files alone."""
        return self.as_json or not (self.csv or self.parquet or self.overlays)


@dataclass
class Counts:
    """How far a prediction has come: images scored, and those that could not be read."""

    scored: int = 0
    bad: int = 0


def predict(
    open_predictor: Callable[[], AbstractContextManager[Predictor]],
    sources: Sequence[str],
    wanted: Wanted,
    counts: Counts,
) -> None:
    """Score images and write what is wanted, batch by batch; unreadable ones are named on stderr as they are met.

    Args:
        open_predictor: gives the model; called when the images are known.
        sources: as `find_images` takes them.
        wanted: what to write.
        counts: kept up to date, for whoever is told of an interruption.

    Raises:
        UserError: where there is no such model, no image, or no place to write to: before anything is scored.
        BadImagesError: at the end, where images could not be read.
    """
    for path in (wanted.csv, wanted.parquet):
        if path is not None:
            outputs.check_output(path)
    uris = find_images(sources)
    if len(uris) == 1 and image_stamps(uris)[0] == MISSING:  # better known before a model is loaded
        raise UnreadableImageError(f"{uris[0]}: file not found")
    with open_predictor() as predictor:
        decisions = predictor.decisions
        if wanted.overlays is not None and not predictor.looks_somewhere:
            raise CheckpointError("--overlay: this model's method does not tell parts of an image apart; leave it out")
        if wanted.threshold is not None:
            decisions = replace(decisions, threshold_C=np.full(len(decisions.class_names), wanted.threshold))
        _score(predictor, uris, decisions, wanted, counts)
    if counts.bad:
        raise BadImagesError(
            f"{counts.bad} of {len(uris)} {'images' if len(uris) > 1 else 'image'} could not be read (named above); "
            "the others are scored"
        )


def _score(predictor: Predictor, uris: Sequence[str], decisions: Decisions, wanted: Wanted, counts: Counts) -> None:
    stdout = sys.stdout  # the bar puts its own in this one's place
    with ExitStack() as stack:
        writers = [stack.enter_context(output) for output in _outputs(decisions, wanted, stdout)]
        batches = stream_scores(predictor, uris, looks=wanted.overlays is not None)
        if not (wanted.prints and stdout.isatty()):  # where the lines themselves show how far it is
            batches = progress(batches, len(uris), "scoring images", size=len)
        for batch in batches:
            scored = [image for image in batch if isinstance(image, ScoredImage)]
            for write in writers:
                write(scored)
            for image in batch:
                if isinstance(image, BadImage):
                    print(f"{image.uri}: {image.reason}", file=sys.stderr, flush=True)
            counts.scored, counts.bad = counts.scored + len(scored), counts.bad + len(batch) - len(scored)


def _outputs(decisions: Decisions, wanted: Wanted, stdout: TextIO) -> Iterator[AbstractContextManager[Write]]:
    if wanted.csv is not None:
        yield outputs.csv_output(wanted.csv, decisions)
    if wanted.parquet is not None:
        yield outputs.parquet_output(wanted.parquet, decisions)
    if wanted.overlays is not None:
        yield outputs.overlay_output(wanted.overlays, decisions, wanted.top)
    if wanted.as_json:
        yield outputs.json_output(stdout, decisions, wanted.top, wanted.found_only)
    elif wanted.prints:
        yield outputs.text_output(stdout, decisions, wanted.top or _TOP, wanted.found_only)
