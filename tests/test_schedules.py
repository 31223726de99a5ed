"""`configs/schedules.yaml`: what is a mistake of the file, and what is one of an experiment, which stops no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cprfl.errors import ConfigError
from pipelines.retraining.schedules import load_schedules

CRON = "0 3 * * 1"


def schedules(folder: Path, *entries: dict[str, Any]) -> Path:
    file = folder / "schedules.yaml"
    file.write_text(yaml.safe_dump({"schedules": [{"cron": CRON, **entry} for entry in entries]}))
    return file


def test_a_mistake_in_one_experiment_is_its_own_and_its_name_stays(small_config: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(small_config.read_text().replace("epochs:", "epocs:").replace("name: small", "name: to-label"))
    torn = tmp_path / "torn one.yaml"
    torn.write_text("name: [")
    found = load_schedules(
        schedules(
            tmp_path, {"config": str(wrong)}, {"config": str(small_config)}, {"config": str(torn)},
            {"config": "nowhere.yaml"},
        )
    )  # fmt: skip
    assert list(found) == ["to_label", "small", "torn_one", "nowhere"]
    assert found["small"].mistake is None
    assert "did you mean 'epochs'" in str(found["to_label"].mistake)
    assert "not YAML" in str(found["torn_one"].mistake)
    assert found["nowhere"].mistake == "nowhere.yaml: configuration file not found"
    wrong.write_text(wrong.read_text().replace("epocs:", "epochs:"))
    assert found["to_label"].mistake is None  # mended while it is served


def test_a_mistake_in_a_sweep_is_that_of_its_experiment(small_config: Path, tmp_path: Path) -> None:
    (found,) = load_schedules(schedules(tmp_path, {"config": str(small_config), "sweep": "none.yaml"})).values()
    assert "sweep file not found" in str(found.mistake)


def test_of_two_experiments_of_one_name_the_second_is_not_retrained(small_config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(small_config.read_text())
    found = load_schedules(schedules(tmp_path, {"config": str(small_config)}, {"config": str(other)}))
    assert list(found) == ["small", "small_2"]
    assert found["small"].mistake is None
    with pytest.raises(ConfigError, match=f"{other} and {small_config} are both named small; give one another name"):
        found["small_2"].experiment()


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ({"corn": CRON}, "did you mean 'cron'"),
        ({"checks": {"blocking": ["leek"]}}, "leek: no such check; there are .*leak"),
        ({"checks": {"min_mAP": 101}}, "min_mAP"),
    ],
)
def test_a_mistake_in_the_file_is_named(small_config: Path, tmp_path: Path, entry: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        load_schedules(schedules(tmp_path, {"config": str(small_config), **entry}))


def test_an_experiment_that_is_listed_twice_is_named(small_config: Path, tmp_path: Path) -> None:
    twice = [{"config": str(small_config)}] * 2
    with pytest.raises(ConfigError, match="is listed twice; give each experiment one schedule"):
        load_schedules(schedules(tmp_path, *twice))
