"""What was decided about a challenger, written down before the alias moves, so that a crash in between is mended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from pipelines.tracking import registry
from pipelines.tracking.store import Store, client, mlflow_mistakes

_VERDICT = "cprfl.verdict"
Decision = Literal["first", "promoted", "kept"]


@dataclass(frozen=True)
class Verdict:
    """A decision about a registered version.

    Attributes:
        version: of the challenger.
        decision: what becomes of it.
        reason: in one sentence.
        request: the key of what it was trained for.
        run_id: the run that trained it.
        champion: the version that it was judged against; none where it is the first.
    """

    version: str
    decision: Decision
    reason: str
    request: str
    run_id: str
    champion: str | None


def write_verdict(store: Store, name: str, verdict: Verdict) -> None:
    """Write it down with its version; nothing else changes yet."""
    values = asdict(verdict) | {"reason": verdict.reason[:3000]}  # a tag has 5,000 characters
    registry.tag_version(store, name, verdict.version, {_VERDICT: json.dumps(values, ensure_ascii=False)})


def carry_out(store: Store, name: str, verdict: Verdict) -> bool:
    """Move the alias, or leave it, and note the decision; what was done already is not done again.

    Returns:
        Whether the verdict holds. It does not where somebody has made a third version the champion meanwhile: the
        version is not judged then.
    """
    present = registry.champion(store, name)
    if present not in (verdict.version, verdict.champion):
        with mlflow_mistakes(store.uri):
            client().delete_model_version_tag(name, verdict.version, _VERDICT)
        return False
    if verdict.decision == "kept":
        registry.reject(store, name, verdict.version, verdict.request, verdict.reason)
    elif present != verdict.version:
        registry.promote(store, name, verdict.version, verdict.request, verdict.reason)
    else:  # the alias was the last thing to be written
        registry.tag_version(store, name, verdict.version, {registry.DECISION: "promoted"})
    return True


def unfinished(store: Store, name: str) -> list[Verdict]:
    """Verdicts that were written down and not carried out to the end."""
    with mlflow_mistakes(store.uri):
        found = client().search_model_versions(f"name = '{name}'")
    return [
        Verdict(**json.loads(version.tags[_VERDICT]))
        for version in found
        if _VERDICT in version.tags and registry.DECISION not in version.tags
    ]


def judged_runs_not_ended(store: Store, name: str) -> list[str]:
    """Runs of versions whose verdict was carried out, after which the process was killed before the run had ended."""
    with mlflow_mistakes(store.uri):
        unended = client().search_runs([store.experiment_id(name)], "attributes.status != 'FINISHED'")
        versions = client().search_model_versions(f"name = '{name}'")
    judged = {v.run_id for v in versions if _VERDICT in v.tags and registry.DECISION in v.tags}
    return [run.info.run_id for run in unended if run.info.run_id in judged]


def run_of(store: Store, name: str, version: str) -> str:
    """The run that trained a version."""
    with mlflow_mistakes(store.uri):
        return str(client().get_model_version(name, version).run_id)
