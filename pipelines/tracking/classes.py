"""What explains a run's results, below it: metrics of classes and the like in a run of their own, a table for people.

Metrics of the run itself would each be a chart of one bar there, before any curve.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping

import mlflow
import pandas as pd
from mlflow.entities import Metric

from cprfl.data.long_tail import class_counts, groups
from cprfl.data.manifest import TEST, Manifest
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.store import client
from pipelines.tracking.titles import KIND, PARENT

CLASSES = "classes"
_TABLE, _TABLES = "classes.json", "mlflow.loggedArtifacts"
_EXPLAINING = re.compile(r"(^|/)(AP/.*|[OC][PR](_\w+)?|\w+_top3|ECE_\w+)$")


def explains(metric: str) -> bool:
    """Whether a metric explains another: one class, what is behind an F1, a part of a calibration."""
    return _EXPLAINING.search(metric) is not None


def log_class_metrics(run_id: str, metrics: Mapping[str, float]) -> None:
    """Log metrics that explain others to the run below this one that is for them."""
    run = client().get_run(run_id)
    experiment = run.info.experiment_id
    below = f"tags.`{PARENT}` = '{run_id}' and tags.`{KIND}` = '{CLASSES}'"
    found = client().search_runs([experiment], below, max_results=1)
    tags = {PARENT: run_id, KIND: CLASSES, "mlflow.runName": f"{run.info.run_name} · {CLASSES}"}
    child = found[0] if found else client().create_run(experiment, tags=tags)
    now = int(time.time() * 1000)
    values = [Metric(name, value, now, 0) for name, value in mlflow_names(metrics).items()]
    for start in range(0, len(values), 1000):  # which is what a request may hold
        client().log_batch(child.info.run_id, metrics=values[start : start + 1000])
    client().set_terminated(child.info.run_id, "FINISHED")


def log_class_table(run_id: str, manifest: Manifest, metrics: Mapping[str, float]) -> None:
    """Log a table of the classes: group, training and test images, AP; the worst first.

    Args:
        run_id: of the run.
        manifest: its images.
        metrics: of an evaluation, with ``AP/<class>``.
    """
    counts, shown = class_counts(manifest), manifest.split(TEST).positives
    members = groups(counts, manifest.groups.head, manifest.groups.tail)
    group = {label: name for name, found in members.items() for label in found}
    rows = [
        (name, group[label], int(counts[label]), int(shown[label]), metrics.get(f"AP/{name}"))
        for label, name in enumerate(manifest.class_names)
    ]
    table = pd.DataFrame(rows, columns=["class", "group", "training images", "test images", "AP"]).sort_values("AP")
    mlflow.log_text(table.to_json(orient="split", index=False), _TABLE)
    known = json.loads(client().get_run(run_id).data.tags.get(_TABLES, "[]"))
    entry = {"path": _TABLE, "type": "table"}
    if entry not in known:
        client().set_tag(run_id, _TABLES, json.dumps([*known, entry]))
