"""Scheduled retraining in Dagster: one chain of assets, one job and one schedule for each experiment that is listed.

An asset is a stage of `cprfl retrain`, called as the command line calls it; what one leaves for the next is on disk
and in MLflow, so Dagster stores no values. (Dagster reads the annotations of its functions: they are not postponed.)
"""

import base64
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    Backoff,
    DagsterExecutionInterruptedError,
    DefaultScheduleStatus,
    Definitions,
    Failure,
    Jitter,
    MaterializeResult,
    MetadataValue,
    RetryPolicy,
    ScheduleDefinition,
    asset,
    define_asset_job,
    in_process_executor,
)
from matplotlib.figure import Figure

from cprfl.data.files import write_json
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import Manifest
from cprfl.errors import UserError
from cprfl.experiment import Experiment
from pipelines import retrain, tracking
from pipelines.preprocess import embed_class_names, preprocess
from pipelines.run import evaluate_stage, trained_run
from pipelines.schedules import SCHEDULES, ScheduleConfig, load_schedules

_ACCEPTED, _FEW = "accepted_counts.json", 10
Stage = Callable[[ScheduleConfig], tuple[dict[str, Any], list[AssetCheckResult]]]


def manifest(schedule: ScheduleConfig) -> tuple[dict[str, Any], list[AssetCheckResult]]:
    """Read the annotations; compare the class counts with those of the last decision."""
    experiment = schedule.experiment()
    read = experiment.dataset.read()
    counts = _counts(read)
    accepted = experiment.folder / _ACCEPTED
    before = json.loads(accepted.read_text()) if accepted.exists() else {}
    changes = {name: 100 * abs(counts.get(name, 0) - count) / count for name, count in before.items() if count >= _FEW}
    limit = schedule.checks.max_label_change
    changed = {name: round(change, 1) for name, change in changes.items() if change > limit}
    said = f"changed by more than {limit:g} %: {changed}; raise checks.max_label_change if that is right"
    splits = {f"{split} images": read.splits.count(split) for split in sorted(set(read.splits))}
    metadata = {**splits, "classes": len(counts), "class counts": _bars(counts, "training images")}
    return metadata, [
        AssetCheckResult(check_name="label_counts", passed=not changed, description=said if changed else None)
    ]


def text_embeddings(schedule: ScheduleConfig) -> tuple[dict[str, Any], list[AssetCheckResult]]:
    """Embed the class names."""
    experiment = schedule.experiment()
    path = embed_class_names(experiment, experiment.dataset.read().class_names)
    return {"file": MetadataValue.path(str(path)), "encoder": experiment.text_encoder.name}, []


def image_features(schedule: ScheduleConfig) -> tuple[dict[str, Any], list[AssetCheckResult]]:
    """Extract what is missing; look at every number."""
    experiment = schedule.experiment()
    prepared = preprocess(experiment)
    total = len(experiment.dataset.read())
    bad = total - len(prepared.read_manifest())
    metadata: dict[str, Any] = {"images": total, "bad images": bad, **prepared.metrics}
    not_finite: list[str] = []
    if prepared.features:  # there are none where the encoder is fine-tuned
        store = prepared.open_features()
        metadata |= {"store": MetadataValue.path(store.folder.uri), "grid": str(list(store.grid_shape))}
        for batch in store.iter_batches(256):
            finite = batch.grid_BVD.isfinite().flatten(1).all(1) & batch.global_BE.isfinite().all(1)
            not_finite += [batch.image_ids[row] for row in (~finite).nonzero().flatten().tolist()]
    limit = schedule.checks.max_bad_images
    return metadata, [
        AssetCheckResult(
            check_name="bad_images", passed=100 * bad <= limit * total, metadata={"bad": bad, "images": total},
            description=f"{bad} of {total} images are missing or do not decode; {limit:g} % may",
        ),
        AssetCheckResult(
            check_name="finite", passed=not not_finite,
            description=f"NaN or infinite features of {not_finite[:5]}" if not_finite else None,
        ),
    ]  # fmt: skip


def trained_model(schedule: ScheduleConfig) -> tuple[dict[str, Any], list[AssetCheckResult]]:
    """Train a challenger, if anything is new."""
    experiment, sweep = schedule.experiment(), schedule.search()
    request = retrain.ask(experiment, sweep)
    if request.judged is not None:
        return {"decision": request.judged.decision, "reason": request.judged.reason}, []
    challenger = retrain.train_challenger(experiment, request, sweep)
    return {"decision": "trained", "run": _run_link(challenger)}, []


def evaluation(schedule: ScheduleConfig) -> tuple[dict[str, Any], list[AssetCheckResult]]:
    """Evaluate the challenger on the current test images."""
    request = retrain.ask(schedule.experiment(), schedule.search())
    if request.judged is not None:
        nothing = AssetCheckResult(check_name="mAP_floor", passed=True, description="nothing new to evaluate")
        return {"decision": request.judged.decision}, [nothing]
    challenger = retrain.trained(schedule.experiment(), request)
    metrics = evaluate_stage(challenger).metrics
    groups = {name: value for name, value in metrics.items() if not name.startswith("AP/")}
    classes = {name.removeprefix("AP/"): value for name, value in metrics.items() if name.startswith("AP/")}
    floor = schedule.checks.min_mAP
    return {**groups, "average precision": _bars(classes, "AP, %"), "run": _run_link(challenger)}, [
        AssetCheckResult(
            check_name="mAP_floor", passed=metrics["mAP"] >= floor, metadata={"mAP": metrics["mAP"]},
            description=f"mAP {metrics['mAP']:.2f}, the floor is {floor:g}",
        )
    ]  # fmt: skip


def champion(schedule: ScheduleConfig) -> tuple[dict[str, Any], list[AssetCheckResult]]:
    """Compare with the champion and decide."""
    experiment = schedule.experiment()
    request = retrain.ask(experiment, schedule.search())
    result = request.judged or retrain.decide(retrain.trained(experiment, request), request)
    write_json(
        experiment.folder / _ACCEPTED, _counts(experiment.dataset.read())
    )  # from now on, change is measured against these
    metadata: dict[str, Any] = {
        "decision": result.decision, "reason": result.reason, "challenger": result.version,
        "champion": f"models:/{experiment.name}/{result.champion}",
    }  # fmt: skip
    if result.run_id is not None:
        metadata["run"] = _run_link(experiment)
    return metadata, []


STAGES: dict[str, tuple[Stage, list[str], list[str]]] = {  # with the stages before and the checks of each
    "manifest": (manifest, [], ["label_counts"]),
    "text_embeddings": (text_embeddings, ["manifest"], []),
    "image_features": (image_features, ["manifest"], ["bad_images", "finite"]),
    "trained_model": (trained_model, ["image_features", "text_embeddings"], []),
    "evaluation": (evaluation, ["trained_model"], ["mAP_floor"]),
    "champion": (champion, ["evaluation"], []),
}


def build(schedules: dict[str, ScheduleConfig]) -> Definitions:
    """Assets, jobs and schedules of the experiments, by the names that Dagster shows.

    Stages of one run share its process, and with it the connection to Ray.
    """
    jobs, timed = [], []
    for name, schedule in schedules.items():
        job = define_asset_job(
            name, AssetSelection.groups(name), executor_def=in_process_executor, tags={"experiment": name}
        )
        jobs.append(job)
        timed.append(
            ScheduleDefinition(
                name=f"{name}_schedule", job=job, cron_schedule=schedule.cron, execution_timezone=schedule.timezone,
                default_status=DefaultScheduleStatus.RUNNING if schedule.running else DefaultScheduleStatus.STOPPED,
            )
        )  # fmt: skip
    assets = [_asset(name, schedule, stage) for name, schedule in schedules.items() for stage in STAGES]
    return Definitions(assets=assets, jobs=jobs, schedules=timed, executor=in_process_executor)


def _asset(name: str, schedule: ScheduleConfig, stage: str) -> AssetsDefinition:
    run, before, checks = STAGES[stage]
    key = AssetKey([name, stage])

    @asset(
        key=key,
        deps=[AssetKey([name, earlier]) for earlier in before],
        group_name=name,
        description=run.__doc__,
        check_specs=[AssetCheckSpec(check, asset=key, blocking=True) for check in checks],
        retry_policy=RetryPolicy(
            max_retries=schedule.retries, delay=schedule.retry_seconds, backoff=Backoff.EXPONENTIAL,
            jitter=Jitter.PLUS_MINUS,
        ),
    )  # fmt: skip
    def materialize(context: AssetExecutionContext) -> MaterializeResult:
        with _failures_named(stage, schedule):
            metadata, results = run(schedule)
        return MaterializeResult(metadata=metadata, check_results=results)

    return materialize


@contextmanager
def _failures_named(stage: str, schedule: ScheduleConfig) -> Iterator[None]:
    """Say which stage failed and why; try again only what may go better the next time."""
    try:
        yield
    except UserError as error:
        where: dict[str, Any] = {"stage": stage, "config": MetadataValue.path(str(Path(schedule.config).absolute()))}
        raise Failure(f"{stage}: {error}", metadata=where, allow_retries=False) from error
    except DagsterExecutionInterruptedError as error:
        raise Failure(f"{stage}: interrupted", allow_retries=False) from error


def _counts(manifest: Manifest) -> dict[str, int]:
    """Training images of each class, by its name."""
    return dict(zip(manifest.class_names, class_counts(manifest).tolist(), strict=True))


def _bars(values: Mapping[str, float], label: str) -> Any:
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


def _run_link(experiment: Experiment) -> Any:
    run_id = trained_run(experiment, {})
    assert run_id is not None
    return MetadataValue.url(tracking.run_url(run_id))


defs = build(load_schedules(Path(os.environ.get(SCHEDULES, "configs/schedules.yaml"))))
