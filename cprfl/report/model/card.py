"""A model card: what was trained on which data, how well it does on which classes, and what it is not for; Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cprfl.data.long_tail import class_counts, groups
from cprfl.data.manifest import TEST, TRAIN, VALIDATION
from cprfl.evaluation.metrics import evaluate
from cprfl.experiment import experiment_of
from cprfl.inference.predictor import Predictor
from cprfl.report.results import Results
from cprfl.training.checkpoint import CheckpointInfo, load_info
from cprfl.words import counted

_SPLITS = (TRAIN, VALIDATION, TEST)
_METRICS = {
    "total": "mAP", "head": "mAP_head", "medium": "mAP_medium", "tail": "mAP_tail",
    "OF1 at 0.5": "OF1", "CF1 at 0.5": "CF1", "OF1 at thresholds": "OF1_decided", "CF1 at thresholds": "CF1_decided",
}  # fmt: skip
_FAILING, _SHOWN = 50.0, 20  # percent AP below which a class is said to fail; how many are listed
_FEW = 5  # test positives below which a class's AP says little
_FILL = "*to be filled in*"


def model_card(predictor: Predictor, checkpoint: Path, results: Results | None, version: str = "") -> str:
    """The card of a model.

    Args:
        predictor: the model.
        checkpoint: its folder.
        results: what it scored; where nothing is known of it, the card says so.
        version: of the registered model, where it is one.
    """
    info = load_info(checkpoint)
    name = str(info.experiment["name"])
    sections = {
        f"{escape(name)}{f', version {escape(version)}' if version else ''}": _summary(info, predictor),
        "Intended use": [
            "Proposing labels of photographs like those of the training data, for a person to confirm, or statistics "
            "over many images. Not for decisions about people, nor where a missed or false label does harm unseen.",
        ],
        "Data": _data(predictor, info, results),
        "Training": _training(info, checkpoint),
        "Evaluation": _evaluation(results),
        "Thresholds and calibration": _decisions(predictor),
        "Where it fails": _failing(results),
        "Limits": _limits(predictor, results),
        "Licence and contact": [
            f"- Licence of the model: {_FILL}", f"- Licence and source of the images: {_FILL}",
            f"- Licence of the encoder's weights: {_FILL}", f"- Contact: {_FILL}",
        ],
    }  # fmt: skip
    parts = [f"{'#' if number == 0 else '##'} {title}\n\n" + "\n".join(lines) for number, (title, lines) in
             enumerate(sections.items())]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """A name as Markdown shows it, whatever stands in it: no markup, no HTML, no link, one line."""
    line = " ".join(text.split())
    return re.sub(r"[^\w ,'()-]|_", lambda found: f"&#{ord(found[0])};", line)


def _summary(info: CheckpointInfo, predictor: Predictor) -> list[str]:
    model, encoder = info.experiment["model"]["name"], info.experiment["encoder"]
    return [
        f"Finds which of {counted(len(predictor.class_names), 'class')} an image shows; an image may show several. "
        f"Method {escape(model)} on features of {escape(str(encoder.get('model', encoder['name'])))}."
    ]


def _data(predictor: Predictor, info: CheckpointInfo, results: Results | None) -> list[str]:
    names = ", ".join(escape(name) for name in predictor.class_names)
    lines = [f"- Data set: {escape(str(info.experiment['dataset']['name']))}", f"- Classes: {names}"]
    if results is None:
        return [*lines, "- Number of images: not at hand where this card was made."]
    manifest = results.manifest
    sizes = [f"{split} {len(manifest.split(split)):,}" for split in _SPLITS if len(manifest.split(split))]
    head, tail = manifest.groups.head, manifest.groups.tail
    of = {group: counted(len(found), "class") for group, found in groups(class_counts(manifest), head, tail).items()}
    return [
        *lines,
        f"- Images: {', '.join(sizes)}",
        f"- Groups by training images: head (from {head}) {of['head']}, medium {of['medium']}, "
        f"tail (fewer than {tail}) {of['tail']}",
    ]


def _training(info: CheckpointInfo, checkpoint: Path) -> list[str]:
    experiment = experiment_of(info, checkpoint)
    fitted = f"loss: `{experiment.loss.name}`" if experiment.epochs else "without a loss: no gradient trains it"
    protocols = {
        "honest": "honest: no test image took part in training or in choosing the epoch",
        "published": "published: the epoch was chosen on the test images, so test figures are too good",
    }
    return [
        f"- Method: `{experiment.model.name}`; {fitted}; tower: {experiment.train.backbone}",
        *([f"- Epochs: {info.epoch}; seed: {experiment.seed}"] if experiment.epochs else []),
        f"- Protocol: {protocols[experiment.protocol if experiment.epochs else 'honest']}",
        f"- Training key: `{info.training_key}`; encoder: `{info.encoder_fingerprint}`",
    ]


def _evaluation(results: Results | None) -> list[str]:
    if results is None:
        return ["No results lie beside the checkpoint; `cprfl evaluate CONFIG` makes them."]
    manifest, rows = results.manifest, [_row("this model", results.evaluation.metrics)]
    targets_NC, counts = results.test.targets(dtype=np.float16), class_counts(manifest)
    for name, logits_NC in results.baselines.items():
        found = evaluate(logits_NC, targets_NC, manifest.class_names, counts, manifest.groups)
        rows.append(_row(escape(name.replace("_", " ")), found.metrics))
    more = [] if results.baselines else ["", "No baseline lies beside it."]
    return [
        f"On {counted(len(results.test), 'test image')}; mean average precision in all and by group, and F1s of what "
        "is found from a probability of 0.5 on, uncalibrated, and at the thresholds below; percent.", "",
        *_table(["", *_METRICS], rows), *more,
    ]  # fmt: skip


def _row(name: str, metrics: dict[str, float]) -> list[str]:
    return [name, *(f"{metrics[key]:.1f}" if key in metrics else "-" for key in _METRICS.values())]


def _decisions(predictor: Predictor) -> list[str]:
    decisions = predictor.decisions
    if not decisions.source:
        return [
            "No image was held out: probabilities are the sigmoid of the logit, uncalibrated, and every threshold 0.5."
        ]
    rows = [
        [escape(name), f"{threshold:.3f}"]
        for name, threshold in zip(decisions.class_names, decisions.threshold_C, strict=True)
    ]
    return [f"Fitted on {escape(decisions.source)}.", "", *_table(["class", "threshold"], rows)]


def _failing(results: Results | None) -> list[str]:
    if results is None:
        return ["Not known: no results lie beside the checkpoint."]
    names, metrics = results.manifest.class_names, results.evaluation.metrics
    counts_C, positives_C = class_counts(results.manifest), results.test.positives
    failing = sorted((metrics[f"AP/{name}"], number) for number, name in enumerate(names)
                     if metrics.get(f"AP/{name}", 100.0) < _FAILING)  # fmt: skip
    absent = results.evaluation.classes_without_positives
    lines = [f"No test image shows {', '.join(map(escape, absent))}: nothing is known of them.", ""] if absent else []
    if not failing:
        return [*lines, f"No class has an average precision below {_FAILING:g} %."]
    rows = [
        [
            escape(names[number]),
            f"{value:.1f}",
            f"{counts_C[number]:,}",
            f"{positives_C[number]:,}",
        ]
        for value, number in failing[:_SHOWN]
    ]
    more = [f"and {len(failing) - _SHOWN} more"] if len(failing) > _SHOWN else []
    return [
        *lines, f"{counted(len(failing), 'class')} below {_FAILING:g} % average precision:", "",
        *_table(["class", "AP, %", "training images", "test images"], rows), *more,
    ]  # fmt: skip


def _limits(predictor: Predictor, results: Results | None) -> list[str]:
    side = predictor.encoder.transform.size
    seen = "squashed into" if predictor.encoder.transform.resize == "squash" else "cropped to the centre of"
    lines = [
        f"- An image is {seen} a square of {side} pixels: what is small in it, or at a cropped edge, is not seen.",
        "- It knows its classes only; what shows none of them gets probabilities too.",
        "- Other cameras, places or label rules than those of the training data change both scores and calibration.",
    ]
    if results is not None:
        positives_C = results.test.positives
        few = [
            escape(name) for name, count in zip(results.manifest.class_names, positives_C, strict=True) if count < _FEW
        ]
        if few:
            lines.append(f"- Fewer than {_FEW} test images show {', '.join(few)}: their figures say little.")
    return lines


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    ruler = ["---", *("---:" for _ in headings[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (headings, ruler, *rows)]
