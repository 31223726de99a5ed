"""`cprfl findings`: labels that look like mistakes, and pictures that are nearly the same, as files to act on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cprfl.report.findings.label_mistakes import label_mistakes, write_label_mistakes
from cprfl.report.findings.label_noise import Suspect
from cprfl.report.findings.near_duplicates import NearDuplicate, near_duplicates, write_near_duplicates
from cprfl.report.results import Results

LABEL_MISTAKES, NEAR_DUPLICATES = "label_mistakes.csv", "near_duplicates.csv"


@dataclass(frozen=True)
class Findings:
    """What was found for a model.

    Attributes:
        results: of the model.
        mistakes: labels that look wrong, the worst first.
        duplicates: pictures that are nearly the same, leaks first; none where there are no features to tell by.
    """

    results: Results
    mistakes: tuple[Suspect, ...]
    duplicates: tuple[NearDuplicate, ...] | None


def findings(folder: Path, count: int) -> Findings:
    """Look for both, and write ``label_mistakes.csv`` and ``near_duplicates.csv`` into the model's folder.

    Args:
        folder: of the model.
        count: labels to name.

    Raises:
        CheckpointError: where nothing is trained or evaluated there.
        FeatureStoreError: where there is nothing to tell label mistakes by.
    """
    results = Results.read(folder)
    mistakes = label_mistakes(results, count, second_opinion=True)
    write_label_mistakes(folder / LABEL_MISTAKES, mistakes)
    if results.store is None:
        return Findings(results, mistakes, None)
    duplicates = near_duplicates(results.manifest, results.store, results.experiment.encoder.reading)
    write_near_duplicates(folder / NEAR_DUPLICATES, duplicates)
    return Findings(results, mistakes, duplicates)
