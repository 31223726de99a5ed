"""Descriptions in Markdown, of runs and registered versions: what came of it, what differs, where to go from here."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from mlflow.entities import Run as MlflowRun

from pipelines.tracking.registry import VERSION
from pipelines.tracking.store import MACHINE_LEARNING, client
from pipelines.tracking.titles import Difference, rounded

NOTE, DIFFERS, SWEEP_RUN, FAILURE = "mlflow.note.content", "cprfl.differs", "cprfl.sweep_run", "failure"
BESIDE = "beside the champion"
_GROUPS = ("head", "medium", "tail")


def describe(run_id: str) -> str:
    """Write a run's description from its metrics and tags as they are now, and give it."""
    run = client().get_run(run_id)
    text = "\n\n".join(line for line in (_failed(run), _results(run), _sweep(run), _data(run), *_links(run)) if line)
    client().set_tag(run_id, NOTE, text)
    return text


def escaped(text: str) -> str:
    """Text of strangers as Markdown that says just that."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def link_to_run(run: MlflowRun) -> str:
    """A link that works on whatever server the description is read."""
    name = escaped(run.info.run_name or run.info.run_id)
    return f"[{name}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?{MACHINE_LEARNING})"


def _failed(run: MlflowRun) -> str:
    reason = run.data.tags.get(FAILURE)
    return f"**{escaped(reason)}**" if reason else ""


def _results(run: MlflowRun) -> str:
    metrics = run.data.metrics
    if "test/mAP" not in metrics:
        return ""
    groups = [f"{group} {metrics[f'test/mAP_{group}']:.1f}" for group in _GROUPS if f"test/mAP_{group}" in metrics]
    chosen = ", epoch chosen on the test images" if run.data.tags.get("protocol") == "published" else ""
    return f"**test mAP {metrics['test/mAP']:.1f} %** ({', '.join(groups)}{chosen})"


def _sweep(run: MlflowRun) -> str:
    best = {name: value for name, value in run.data.metrics.items() if name.startswith("best/")}
    settings = [
        f"`{name.removeprefix('best.')}` {escaped(rounded(value))}"
        for name, value in run.data.tags.items() if name.startswith("best.")
    ]  # fmt: skip
    lines = [
        f"best {name.removeprefix('best/').replace('/', ' ')} {value:.1f}: {', '.join(settings)}"
        for name, value in best.items()
    ]
    return "\n".join(lines)


def _data(run: MlflowRun) -> str:
    for used in run.inputs.dataset_inputs:
        profile: dict[str, Any] = json.loads(used.dataset.profile or "{}")
        images = ", ".join(f"{count} {split}" for split, count in profile.get("images", {}).items())
        return f"data: {escaped(used.dataset.name)}, {profile.get('classes')} classes; images: {images}"
    return ""


def _links(run: MlflowRun) -> list[str]:
    """What differs from which run, the sweep it came from, the version it became and the decision about that."""
    tags, lines = run.data.tags, []
    if DIFFERS in tags and (found := Difference.of_tag(tags[DIFFERS])).run_id:
        reference = link_to_run(client().get_run(found.run_id))
        rows = [f"`{path}` {escaped(here)} (was {escaped(there)})" for path, (there, here) in found.settings.items()]
        rows += ["other data"] if found.data else []
        lines.append(f"against {reference}: {'; '.join(rows) if rows else 'the same settings and data'}")
    if SWEEP_RUN in tags:
        lines.append(f"winner of {link_to_run(client().get_run(tags[SWEEP_RUN]))}")
    if VERSION in tags:
        name, _, version = tags[VERSION].rpartition("/")
        lines.append(f"registered as [{escaped(name)}, version {version}](#/models/{name}/versions/{version})")
    if BESIDE in tags:
        lines.append(escaped(tags[BESIDE]))
    if "decision" in tags:
        lines.append(f"{escaped(tags['decision'])}: {escaped(tags.get('reason', ''))}")
    return lines
