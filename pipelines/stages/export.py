"""A model written for where this package is not: the graph, how images are prepared, an example and a model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cprfl.data.files import write_json, write_text
from cprfl.data.images import open_image
from cprfl.data.manifest import TEST, Manifest
from cprfl.data.temporary import temporary_folder
from cprfl.errors import CheckpointError, UnreadableImageError
from cprfl.inference import example
from cprfl.inference.export import FILES, Format
from cprfl.inference.export import export as write_graph
from cprfl.inference.predictor import Predictor
from cprfl.inference.scoring import EVALUATION
from cprfl.preparation import CHECKPOINT, MANIFEST
from cprfl.report.model.card import model_card
from cprfl.report.results import Results
from cprfl.training.checkpoint import CheckpointInfo, load_info
from pipelines.stages.model_names import find_model
from pipelines.tracking.models import SCHEME, fetch_model, resolve

_CHECKED = 8  # images on which the graph is compared with PyTorch


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: with all of it.
        files: their names.
        difference: the largest between the graph and PyTorch.
        images: on which they were compared.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float
    images: int


def export(model: str, form: Format, output: Path | None, output_dir: Path) -> Exported:
    """Export a model.

    Args:
        model: as `find_model` takes it.
        form: of the graph.
        output: folder to write to; without one, ``export`` beside the checkpoint, or for a registered model
            ``outputs/<name>/export``.
        output_dir: where the experiments and the MLflow store are.

    Raises:
        CheckpointError: where there is no such model, or it cannot be written in this form.
        UnreadableImageError: where too few of its images are at hand to compare the graph on.
    """
    found = find_model(model, output_dir)
    if not found.startswith(SCHEME):
        checkpoint = Path(found)
        folder = output or checkpoint.parent / "export"
        return _export(Predictor.load(checkpoint), checkpoint, checkpoint.parent, form, folder, "")
    name, version = resolve(found)
    home = output_dir / name
    with temporary_folder() as downloaded:
        files = fetch_model(f"{SCHEME}{name}/{version}", downloaded)
        predictor = Predictor.load(files.checkpoint, files.encoder_weights)
        folder = output or home / "export"
        return _export(predictor, files.checkpoint, home, form, folder, version)


def _export(predictor: Predictor, checkpoint: Path, home: Path, form: Format, folder: Path, version: str) -> Exported:
    images = _images(predictor, home)
    difference = write_graph(predictor, form, folder / FILES[form], images)
    write_json(folder / example.PREPROCESSING, example.preprocessing(predictor))
    write_text(folder / example.NAMES[form], example.program(form, predictor.encoder.transform))
    write_text(
        folder / "MODEL_CARD.md", model_card(predictor, checkpoint, _results(home, load_info(checkpoint)), version)
    )
    files = (FILES[form], example.PREPROCESSING, example.NAMES[form], "MODEL_CARD.md")
    return Exported(folder, files, difference, len(images))


def _results(home: Path, info: CheckpointInfo) -> Results | None:
    """What lies beside the checkpoint, where it is about this very training."""
    try:
        if not (home / EVALUATION).exists() or load_info(home / CHECKPOINT).training_key != info.training_key:
            return None
    except CheckpointError:
        return None
    return Results.read(home)


def _images(predictor: Predictor, home: Path) -> list[Image.Image]:
    """Test images of the experiment; the first of its images where it has no test split."""
    path = home / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{path}: not there, and the graph is compared on its images; `cprfl preprocess CONFIG`")
    manifest = Manifest.read(path)
    chosen = manifest.split(TEST) if len(manifest.split(TEST)) else manifest
    images = []
    for uri in chosen.uris:
        try:
            images.append(open_image(uri, predictor.encoder.transform.reading))
        except UnreadableImageError:
            continue  # one that evaluation left out
        if len(images) == _CHECKED:
            break
    if len(images) < 3:
        raise UnreadableImageError(f"{path}: {len(images)} of its images can be read; three are needed to compare on")
    return images
