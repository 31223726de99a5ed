"""Scheduled retraining through Dagster's own API: a job that succeeds, checks that stop it, one run per tick."""

from __future__ import annotations

import datetime as dt
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import AssetKey, DagsterInstance, Definitions

from cprfl.errors import ConfigError
from cprfl.experiment import load
from cprfl.report.checks.base import CODES, Check
from pipelines.retraining import assets, retrain
from pipelines.retraining.schedules import ScheduleConfig, load_schedules
from pipelines.retraining.server import serve
from pipelines.stages.check import check as check_model
from pipelines.tracking import registry
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import open_store

ROOT = Path(__file__).parent.parent
LENIENT = ["promotion.confidence=0", "promotion.max_group_loss=100", "train.epochs=2"]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    home = tmp_path / "dagster"
    home.mkdir()
    with DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as found:
        yield found


def retrained(config: Path, instance: DagsterInstance, **more: Any) -> Any:
    """Run the retraining job of one schedule."""
    values = {"config": str(config), "set": LENIENT, "cron": "0 3 * * 1", "retries": 0, **more}
    defs = assets.build({"small": ScheduleConfig.model_validate(values)})
    return defs.resolve_job_def("small").execute_in_process(instance=instance, raise_on_error=False)


def champion_of(config: Path) -> str | None:
    return registry.champion(open_store(load(config).output_dir), "small")


def metadata(instance: DagsterInstance, stage: str) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(AssetKey(["small", stage]))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def test_the_job_retrains_and_shows_what_a_person_wants_to_see(
    own_config: Path, own_photos: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_FEW", 1)  # classes of the photos have fewer than ten images
    result = retrained(own_config, instance)
    assert result.success
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert {"label_counts", "bad_images", "finite", "mAP_floor"} == {
        name for name, check in found.items() if check.blocking and check.passed
    }
    said = {check.code: check for check in check_model(load(own_config, LENIENT))}  # which is in its place by now
    assert set(said) == set(CODES)
    for code, check in said.items():
        shown = found[code.replace("-", "_")]
        assert (shown.metadata["status"].value, shown.severity.value) == (check.status, "WARN")
        assert shown.passed == (check.status not in ("issue", "skipped"))
    assert metadata(instance, "manifest")["train images"] == 16
    assert metadata(instance, "manifest")["class counts"].startswith("![training images](data:image/png;base64,")
    assert metadata(instance, "image_features")["bad images"] == 0
    assert metadata(instance, "evaluation")["mAP"] > 0
    assert "/runs/" in metadata(instance, "trained_model")["run"]
    assert metadata(instance, "champion")["decision"] == "first"
    assert Path(metadata(instance, "champion")["report"]).is_file()
    assert champion_of(own_config) == "1"

    assert retrained(own_config, instance).success
    assert metadata(instance, "champion")["decision"] == "nothing new"

    train = own_photos / "train.csv"
    text = train.read_text()
    train.write_text(text.replace(";green", ""))
    stopped = retrained(own_config, instance, checks={"max_label_change": 10})
    assert stopped.get_failed_step_keys() == {"small__manifest"}
    (check,) = [check for check in stopped.get_asset_check_evaluations() if not check.passed]
    assert "green" in check.description
    train.write_text(text)

    floor = retrained(own_config, instance, checks={"min_mAP": 100}, set=[*LENIENT, "train.epochs=1"])
    assert floor.get_failed_step_keys() == {"small__evaluation"}
    assert champion_of(own_config) == "1"


def test_a_failure_shows_the_stage_and_the_reason(
    own_config: Path, own_photos: Path, instance: DagsterInstance
) -> None:
    (own_photos / "03.png").write_bytes(b"no image")
    result = retrained(own_config, instance)
    assert result.get_failed_step_keys() == {"small__image_features"}
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "1 of 24 images is missing or does not decode" in failure.step_failure_data.user_failure_data.description
    assert failure.step_failure_data.user_failure_data.metadata["stage"].value == "image_features"
    skipping = retrained(own_config, instance, set=[*LENIENT, "dataset.on_bad_image=skip"])
    (check,) = [check for check in skipping.get_asset_check_evaluations() if not check.passed]
    assert (check.check_name, check.metadata["bad"].value) == ("bad_images", 1)
    assert skipping.get_failed_step_keys() == {"small__image_features"}


def test_a_typo_in_one_experiment_fails_its_first_stage_and_no_other(
    small_config: Path, tmp_path: Path, instance: DagsterInstance
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(small_config.read_text().replace("epochs:", "epocs:").replace("name: small", "name: wrong"))
    file = tmp_path / "schedules.yaml"
    entries = [{"config": str(config), "cron": "0 3 * * 1", "retries": 2} for config in (wrong, small_config)]
    file.write_text(yaml.safe_dump({"schedules": entries}))
    defs = assets.build(load_schedules(file))
    assert {schedule.name for schedule in defs.schedules or []} == {"wrong_schedule", "small_schedule"}
    result = defs.resolve_job_def("wrong").execute_in_process(instance=instance, raise_on_error=False)
    assert result.get_failed_step_keys() == {"wrong__manifest"}
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said: Any = failure.step_failure_data.user_failure_data
    assert "train.epocs: no such setting; did you mean 'epochs'" in said.description
    assert said.metadata["config"].value == str(wrong)
    assert (
        defs.resolve_job_def("small")
        .execute_in_process(instance=instance, asset_selection=[AssetKey(["small", "manifest"])])
        .success
    )


def test_a_check_of_the_model_stops_the_retraining_where_the_schedule_says_so(
    small_config: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = Check("leak", "3 test images are training images", "issue", "Remove them.")
    monkeypatch.setattr(assets, "check", lambda _: (leak,))
    monkeypatch.setattr(retrain, "write_report", lambda *_: None)
    stopped = retrained(small_config, instance, checks={"blocking": ["leak"]})
    assert stopped.get_failed_step_keys() == {"small__evaluation"}
    found = {check.check_name: check for check in stopped.get_asset_check_evaluations()}
    assert found["leak"].description == "3 test images are training images. Remove them."
    assert found["leak"].severity.value == "ERROR"
    assert found["overfit"].metadata["status"].value == "skipped"  # silence is never success
    assert not found["overfit"].passed
    assert champion_of(small_config) is None
    assert retrained(small_config, instance).success  # where it only warns
    assert champion_of(small_config) == "1"


def test_links_lead_to_the_port_that_the_schedules_name(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(small_config)
    store = open_store(experiment.output_dir)
    with open_run(store, experiment) as run:
        pass
    monkeypatch.setenv("CPRFL_UI_PORT", "5977")
    link = assets._run_link(store, run.id).value
    assert link.startswith("http://127.0.0.1:5977/#/experiments/")
    assert link.endswith(f"/runs/{run.id}?workflowType=machine_learning")


def test_every_tick_of_the_schedule_is_one_run(
    small_config: Path, tmp_path: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster._core.remote_origin import InProcessCodeLocationOrigin
    from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._scheduler.scheduler import launch_scheduled_runs

    schedules = tmp_path / "schedules.yaml"
    schedules.write_text(yaml.safe_dump({"schedules": [{"config": str(small_config), "cron": "* * * * *"}]}))
    monkeypatch.setenv("CPRFL_SCHEDULES", str(schedules))
    file = str(ROOT / "pipelines" / "retraining" / "definitions.py")
    origin = LoadableTargetOrigin(executable_path=sys.executable, python_file=file, working_directory=str(ROOT))
    now, runs = dt.datetime(2026, 1, 5, 12, 0, 30, tzinfo=dt.UTC), []
    target = InProcessTestWorkspaceLoadTarget(InProcessCodeLocationOrigin(origin))
    with WorkspaceProcessContext(instance, target) as workspace:
        for _ in range(8):  # every 20 seconds: the ticks of 12:01, 12:02 and 12:03 lie in between
            errors = list(filter(None, launch_scheduled_runs(workspace, logging.getLogger(), now, iteration_times={})))
            assert not errors
            runs.append(instance.get_runs_count())
            now += dt.timedelta(seconds=20)
    assert runs == [0, 0, 1, 1, 1, 2, 2, 2]
    assert {run.job_name for run in instance.get_runs()} == {"small"}


def test_the_shipped_schedules_load_and_mistakes_are_named(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CPRFL_SCHEDULES", "configs/schedules.yaml")  # which serve sets to its own
    Definitions.validate_loadable(assets.build(load_schedules(Path("configs/schedules.yaml"))))
    file = tmp_path / "schedules.yaml"
    twice = [{"config": str(small_config), "cron": "0 3 * * 1"}] * 2
    for values, wrong in [
        ({"schedules": twice}, "is listed twice"),
        ({"schedules": [{"config": str(small_config), "corn": "0 3 * * 1"}]}, "did you mean 'cron'"),
        ({"schedules": [{"config": str(small_config), "cron": "61 3 * * 1"}]}, "(?i)invalid cron schedule '61 3"),
        ({"schedules": [{"config": str(small_config), "cron": "0 3 * * 1", "timezone": "Europe/Berln"}]}, "Berln"),
    ]:
        file.write_text(yaml.safe_dump(values))
        with pytest.raises(ConfigError, match=wrong):
            serve(file, tmp_path / "home", 1)
    assert not (tmp_path / "home").exists()
