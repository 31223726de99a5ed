"""Scheduled retraining in Dagster: one chain of assets, one job and one schedule for each experiment that is listed.

An asset is a stage of `cprfl retrain`. What one leaves for the next is on disk and in MLflow (the data set as it was
read, and the request that was made of it), so Dagster stores no values, and a stage can be run again alone. (Dagster
reads the annotations of its functions: they are not postponed.)
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

from cprfl.data.files import read_json, write_json
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import Manifest
from cprfl.errors import DatasetError, UserError
from cprfl.reading import read_data
from cprfl.report.checks.base import CODES
from pipelines.lock import alone
from pipelines.retraining.request import dataset_file, load_request, make_request
from pipelines.retraining.retrain import (
    decide,
    earlier_decision,
    evaluate_challenger,
    finish_decisions,
    place_of,
    train_challenger,
    trained_challenger,
)
from pipelines.retraining.schedules import UI_PORT, ScheduleConfig
from pipelines.retraining.shown import bars, beside_the_champion, check_name, check_results
from pipelines.stages.champion import read_standing
from pipelines.stages.check import check
from pipelines.stages.places import RETRAINING
from pipelines.stages.report import REPORT
from pipelines.tracking.runs import run_url
from pipelines.tracking.store import Store, open_store, ui_address

_ACCEPTED, _FEW = "accepted_counts.json", 10
Result = tuple[dict[str, Any], list[AssetCheckResult]]
Stage = Callable[[ScheduleConfig, Store], Result]


def manifest(schedule: ScheduleConfig, store: Store) -> Result:
    """Read the annotations; compare the class counts with those of the last decision."""
    experiment = schedule.experiment()
    schedule.search()  # a mistake in the sweep is better known now
    finish_decisions(store, experiment)
    read = read_data(experiment.placed(RETRAINING))
    read.write(dataset_file(experiment))  # for the stages to come: whoever edits labels meanwhile asks anew
    counts = _counts(read)
    accepted = experiment.placed(RETRAINING).folder / _ACCEPTED
    forget = "remove it, and nothing is compared with this time"
    before = read_json(accepted, DatasetError, forget) if accepted.exists() else {}
    changes = {name: 100 * abs(counts.get(name, 0) - count) / count for name, count in before.items() if count >= _FEW}
    limit = schedule.checks.max_label_change
    changed = {name: round(change, 1) for name, change in changes.items() if change > limit}
    said = f"changed by more than {limit:g} %: {changed}; raise checks.max_label_change if that is right"
    splits = {f"{split} images": read.splits.count(split) for split in sorted(set(read.splits))}
    metadata = {**splits, "classes": len(counts), "class counts": bars(counts, "training images")}
    return metadata, [
        AssetCheckResult(check_name="label_counts", passed=not changed, description=said if changed else None)
    ]


def text_embeddings(schedule: ScheduleConfig, store: Store) -> Result:
    """Embed the class names."""
    experiment = schedule.experiment()
    class_names = Manifest.read(dataset_file(experiment)).class_names
    _, path = experiment.text_encoder.find_or_embed(class_names, experiment.cache_dir)
    return {"file": MetadataValue.path(str(path)), "encoder": experiment.text_encoder.name}, []


def image_features(schedule: ScheduleConfig, store: Store) -> Result:
    """Extract what is missing; look at every number."""
    experiment = schedule.experiment()
    request = make_request(store, experiment, schedule.search(), Manifest.read(dataset_file(experiment)))
    request.save()
    prepared = request.prepared
    total = len(request.dataset)
    bad = total - len(prepared.manifest)
    metadata: dict[str, Any] = {"images": total, "bad images": bad, **prepared.metrics}
    not_finite: list[str] = []
    if prepared.store is not None:  # there are no features where the encoder is trained too
        found = prepared.store
        metadata |= {"store": MetadataValue.path(found.folder.uri), "grid": str(list(found.grid_shape))}
        for batch in found.iter_batches(256):
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


def trained_model(schedule: ScheduleConfig, store: Store) -> Result:
    """Train a challenger, if anything is new."""
    request = load_request(schedule.experiment())
    earlier = earlier_decision(store, request)
    if earlier is not None:
        return {"decision": earlier.decision, "reason": earlier.reason}, []
    challenger = train_challenger(store, request)
    return {"decision": "trained", "run": _run_link(store, challenger.run_id)}, []


def evaluation(schedule: ScheduleConfig, store: Store) -> Result:
    """Evaluate the challenger on the test images."""
    request = load_request(schedule.experiment())
    earlier = earlier_decision(store, request)
    if earlier is not None:
        nothing = AssetCheckResult(check_name="mAP_floor", passed=True, description="nothing new to evaluate")
        model = place_of(store, request.experiment, earlier.version)
        return {"decision": earlier.decision}, [nothing, *check_results(check(model) if model else (), blocking=())]
    challenger = trained_challenger(store, request)
    metrics = evaluate_challenger(store, challenger).metrics
    groups = {name: value for name, value in metrics.items() if not name.startswith("AP/")}
    classes = {name.removeprefix("AP/"): value for name, value in metrics.items() if name.startswith("AP/")}
    floor = schedule.checks.min_mAP
    metadata = {
        **groups, "average precision": bars(classes, "AP, %"), "run": _run_link(store, challenger.run_id),
        "report": MetadataValue.path(str(challenger.experiment.folder / REPORT)),
    }  # fmt: skip
    if (standing := read_standing(challenger.experiment)) is not None:
        metadata |= beside_the_champion(standing)
    return metadata, [
        AssetCheckResult(
            check_name="mAP_floor", passed=metrics["mAP"] >= floor, metadata={"mAP": metrics["mAP"]},
            description=f"mAP {metrics['mAP']:.2f}, the floor is {floor:g}",
        ),
        *check_results(check(challenger.experiment), schedule.checks.blocking),
    ]  # fmt: skip


def champion(schedule: ScheduleConfig, store: Store) -> Result:
    """Compare with the champion and decide."""
    request = load_request(schedule.experiment())
    done = finish_decisions(store, request.experiment).get(request.key) or earlier_decision(store, request)
    result = done or decide(store, trained_challenger(store, request), request)
    accepted = request.experiment.placed(RETRAINING).folder / _ACCEPTED
    write_json(accepted, _counts(request.dataset))  # from now on, change is measured against these
    metadata: dict[str, Any] = {
        "decision": result.decision, "reason": result.reason, "challenger": result.version,
        "champion": f"models:/{request.experiment.name}/{result.champion}",
    }  # fmt: skip
    if result.run_id is not None:
        metadata["run"] = _run_link(store, result.run_id)
    if result.folder is not None:
        metadata["report"] = MetadataValue.path(str(result.folder / REPORT))
    if result.standing is not None:
        metadata |= beside_the_champion(result.standing)
    return metadata, []


STAGES: dict[str, tuple[Stage, list[str], list[str]]] = {  # with the stages before and the checks of each
    "manifest": (manifest, [], ["label_counts"]),
    "text_embeddings": (text_embeddings, ["manifest"], []),
    "image_features": (image_features, ["manifest"], ["bad_images", "finite"]),
    "trained_model": (trained_model, ["image_features", "text_embeddings"], []),
    "evaluation": (evaluation, ["trained_model"], ["mAP_floor", *map(check_name, CODES)]),
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
    warn = {check_name(code) for code in CODES if code not in schedule.checks.blocking}

    @asset(
        key=key,
        deps=[AssetKey([name, earlier]) for earlier in before],
        group_name=name,
        description=run.__doc__,
        check_specs=[AssetCheckSpec(found, asset=key, blocking=found not in warn) for found in checks],
        retry_policy=RetryPolicy(
            max_retries=schedule.retries, delay=schedule.retry_seconds, backoff=Backoff.EXPONENTIAL,
            jitter=Jitter.PLUS_MINUS,
        ),
    )  # fmt: skip
    def materialize(context: AssetExecutionContext) -> MaterializeResult:
        with _failures_named(stage, schedule):
            experiment = schedule.experiment()
            with alone(experiment, f"the schedule's {stage}"):
                metadata, results = run(schedule, _store(context.run_id, experiment.output_dir))
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


@functools.lru_cache(maxsize=1)
def _store(run_id: str, output_dir: str) -> Store:
    """MLflow's store, opened once for all stages of one of Dagster's runs."""
    return open_store(output_dir)


def _run_link(store: Store, run_id: str) -> Any:
    """To MLflow's server, or to what `cprfl ui` serves of a store in a file, on the port that the schedules name."""
    url, usual = run_url(store, run_id), ui_address(store.uri)
    named = ui_address(store.uri, int(os.environ[UI_PORT])) if UI_PORT in os.environ else usual
    return MetadataValue.url(named + url.removeprefix(usual))
