"""What scores and features tell of the images themselves: labels that look wrong, pictures that come twice."""

from __future__ import annotations

from dataclasses import dataclass

from cprfl.evaluation.decisions import HELD_OUT
from cprfl.report.findings.label_mistakes import label_mistakes
from cprfl.report.findings.label_noise import Suspect
from cprfl.report.findings.near_duplicates import NearDuplicate, near_duplicates
from cprfl.report.results import Results

MISTAKES = 24
"""Labels that a page shows."""
_COMPARED = 20_000  # images; each is compared with all others, which takes minutes with many more


@dataclass(frozen=True)
class ImageFindings:
    """Findings, or why there are none.

    Attributes:
        mistakes: labels that look wrong, the worst first; none where they were not looked for.
        no_mistakes: why they were not.
        duplicates: pairs of pictures that are nearly the same, leaks first; none where they were not looked for.
        no_duplicates: why they were not.
    """

    mistakes: tuple[Suspect, ...] | None
    no_mistakes: str
    duplicates: tuple[NearDuplicate, ...] | None
    no_duplicates: str


def image_findings(results: Results) -> ImageFindings:
    """Look for them, as far as what lies in the model's folder lets one.

    Raises:
        StorageError: where the images' storage cannot be reached.
    """
    mistakes, no_mistakes = None, "no scores of training images that were held out of a training lie with the model"
    if (results.checkpoint / HELD_OUT).exists():
        mistakes, no_mistakes = label_mistakes(results, MISTAKES), ""
    store, images = results.store, len(results.manifest)
    if store is None:
        return ImageFindings(mistakes, no_mistakes, None, "the image tower moved, so no features are cached")
    if images > _COMPARED:
        reason = f"comparing each of {images:,} images with all others takes long"
        return ImageFindings(mistakes, no_mistakes, None, reason)
    found = near_duplicates(results.manifest, store, results.experiment.encoder.reading)
    return ImageFindings(mistakes, no_mistakes, found, "")
