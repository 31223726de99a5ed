"""Configuration: what merges, and that every mistake is listed with its path and its mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load

CONFIGS = Path(__file__).parent.parent / "configs"


def mistakes(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


EXPERIMENTS = sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "schedules.yaml"})  # which test_definitions looks at


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid_and_says_how_to_run_it(path: Path) -> None:
    experiment = load(path)
    assert experiment.name == path.stem
    comment = path.read_text().partition("name:")[0]
    assert f"cprfl run configs/{path.name}" in comment


def test_overrides_win_and_paths_follow_data_root(small_config: Path, tmp_path: Path) -> None:
    experiment = load(small_config, ["train.epochs=7", f"data_root={tmp_path}/elsewhere", "loss.gamma_neg=2"])
    assert experiment.train.epochs == 7
    assert experiment.loss.gamma_neg == 2
    assert experiment.dataset.model_dump()["splits"]["train"] == f"{tmp_path}/elsewhere/train.csv"


def test_choosing_another_component_replaces_the_section(small_config: Path) -> None:
    experiment = load(small_config, ["model.name=linear_probe"])
    assert experiment.model.name == "linear_probe"
    assert experiment.model.standardize


def test_a_variant_is_the_experiment_with_its_changes(small_config: Path) -> None:
    experiment = load(small_config, ["variants.probe.model.name=linear_probe"])
    variant = experiment.variant("probe")
    assert variant.name == "small-probe"
    assert variant.dataset == experiment.dataset
    assert variant.model.name == "linear_probe"
    assert variant.training_fingerprint != experiment.training_fingerprint


def test_a_checkpoint_s_configuration_reads_back(small_config: Path) -> None:
    experiment = load(small_config)
    assert Experiment.model_validate(experiment.model_dump(mode="json")) == experiment


def test_all_mistakes_come_in_one_list(small_config: Path) -> None:
    text = mistakes(small_config, "train.epoch=3", "train.batch_size=none", "model.num_heads=0", "loss.clip=2")
    assert text.splitlines()[0].endswith("small.yaml: 4 mistakes")
    assert "train.epoch: no such setting; did you mean 'epochs'?" in text
    assert "train.batch_size: got 'none'; input should be a valid integer" in text
    assert "model.num_heads: got 0; input should be greater than 0" in text
    assert "loss.clip: got 2; input should be less than 1" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=cprl", "model.name: no such choice 'cprl'; did you mean 'cprfl'? (choices: cprfl, linear_probe)"),
        ("protocol=publish", "protocol: got 'publish'; did you mean 'published'?; valid: honest, published"),
        ("encoder.modle=x", "encoder.modle: no such setting; did you mean 'model'?"),
        ("dataset.splits.tset=x", "dataset.splits.tset"),
        ("train.select=best", "train.select: best needs train.validation > 0"),
        ("variants.x.model.dmi=3", "variants.x: 1 mistake\n  model.dmi: no such setting; did you mean 'dim'?"),
        ("name=a/b", "name: got 'a/b'"),
        ("train", "--set train: expected a.b=value"),
    ],
)
def test_a_mistake_says_where_and_what_would_be_right(small_config: Path, override: str, message: str) -> None:
    assert message in mistakes(small_config, override)


def test_results_are_written_to_a_file_system(small_config: Path) -> None:
    with pytest.raises(ConfigError, match="output_dir must be a folder"):
        load(small_config, ["output_dir=s3://bucket/outputs"])


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    assert "nowhere.yaml: configuration file not found" in mistakes(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    assert "broken.yaml: not YAML" in mistakes(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "expected settings as `key: value`" in mistakes(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("name: x\n")
    text = mistakes(tmp_path / "empty.yaml")
    assert "dataset: missing; give it in the file or with --set dataset=..." in text
