"""`cprfl compare`: runs side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from cprfl.report.comparing.compare import Compared, compare_results
from cprfl.report.comparing.page import write_page
from cprfl.report.results import Results
from pipelines.stages.places import folder_of_results
from pipelines.tracking.results import fetch_results, is_run_id
from pipelines.tracking.store import open_existing_store


def compare(runs: Sequence[str], page: Path, output_dir: Path) -> Compared:
    """Compare trained and evaluated models, and write a page about it.

    Args:
        runs: folders of results, experiments by their files or names, or ids of MLflow runs; the others are compared
            with the first.
        page: to write.
        output_dir: where the MLflow store and the manifests are, for ids of runs.

    Raises:
        CheckpointError: where a run cannot be found, or has no results.
        DatasetError: where the runs have no test image or no class in common.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = dict[str, Results]()
        for number, run in enumerate(runs):
            place = Path(folder) / str(number)
            place.mkdir()
            results = Results.read(_folder_of(run, output_dir, place))
            name = _name(run, results)
            found[name if name not in found else f"{name} ({run})"] = results
        compared = compare_results(found)
        write_page(compared, page)
    return compared


def _folder_of(run: str, output_dir: Path, place: Path) -> Path:
    if (folder := folder_of_results(run, output_dir)) is not None:
        return folder
    return fetch_results(open_existing_store(str(output_dir)), run, output_dir, place)


def _name(run: str, results: Results) -> str:
    """As short as it can be: the experiment's name with the place below its folder, or with the run's first digits."""
    own = results.experiment.name
    if is_run_id(run):
        return f"{own} {run[:8]}"
    folder = results.folder.absolute()
    return f"{own}/{folder.name}" if folder.name != own and folder.parent.name == own else own
