"""What a person sees of a retraining in Dagster: bar charts, the challenger beside the champion, the model's checks."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from dagster import AssetCheckResult, AssetCheckSeverity, MetadataValue
from matplotlib.figure import Figure

from cprfl.report.checks.base import CODES, Check
from pipelines.stages.champion import Standing

_CLASSES = 5


def bars(values: Mapping[str, float], label: str) -> Any:
    """A bar chart of a value per class, the largest first."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    figure = Figure(figsize=(max(4.0, 0.2 * len(ordered)), 3.0), layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(len(ordered)), [value for _, value in ordered])
    axes.set_xticks(np.arange(len(ordered)), [name for name, _ in ordered], rotation=90, fontsize=7)
    axes.set_ylabel(label)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return MetadataValue.md(f"![{label}](data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()})")


def beside_the_champion(standing: Standing) -> dict[str, Any]:
    """Metadata that says better or worse, in total, by group and by class."""
    rows = [f"| {group} | {old:.1f} | {new:.1f} | {new - old:+.1f} |" for group, (old, new) in standing.groups.items()]
    table = "\n".join(["| mAP, % | champion | challenger | points |", "|---|---:|---:|---:|", *rows])
    found = {"beside the champion": standing.sentence, "champion and challenger": MetadataValue.md(table)}
    for what, classes in (("gained most", standing.gained(_CLASSES)), ("lost most", standing.lost(_CLASSES))):
        if classes:
            found[what] = ", ".join(map(str, classes))
    return found


def check_name(code: str) -> str:
    """What Dagster calls a model's check: letters, digits and underscores."""
    return code.replace("-", "_")


def check_results(checks: Iterable[Check], blocking: Collection[str]) -> list[AssetCheckResult]:
    """The model's checks as Dagster's, one for each code.

    One that is an issue, or could not be looked at, has not passed: it warns, or stops the retraining where it blocks.
    """
    found = {code: Check(code, "Not looked at", "skipped", "The model does not lie here.") for code in CODES}
    found |= {check.code: check for check in checks}
    return [
        AssetCheckResult(
            check_name=check_name(code),
            passed=check.status not in ("issue", "skipped"),
            severity=AssetCheckSeverity.ERROR if code in blocking else AssetCheckSeverity.WARN,
            description=f"{check.title}. {check.explanation}",
            metadata={"status": check.status},
        )
        for code, check in found.items()
    ]
