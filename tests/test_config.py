"""Configuration: what merges, and that every mistake is listed with its path and its mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load
from cprfl.training.config import TrainConfig

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
    assert experiment.model_dump()["loss"]["gamma_neg"] == 2
    assert experiment.dataset.model_dump()["splits"]["train"] == f"{tmp_path}/elsewhere/train.csv"


def test_choosing_another_component_replaces_the_section(small_config: Path) -> None:
    experiment = load(small_config, ["model.name=linear_probe"])
    assert experiment.model.name == "linear_probe"
    assert experiment.model.standardize


def test_an_empty_section_leaves_nothing_of_what_was_there(small_config: Path) -> None:
    variants = ["variants.a.seed=3", "variants.b.model.name=linear_probe"]
    assert load(small_config, [*variants, "variants={}"]).variants == {}
    assert load(small_config, ["variants.a.seed=3", "variants={b: {seed: 4}}"]).variants.keys() == {"a", "b"}
    assert load(small_config, ["train={}"]).train == TrainConfig()
    assert "model.name: missing" in mistakes(small_config, "model={}")


@pytest.mark.parametrize("section", ["variants", "encoder", "model", "dataset", "dataset.splits", "dataset.groups"])
@pytest.mark.parametrize("value", ["[]", "[a]", "[1, 2]"])
def test_a_list_where_a_section_is_expected_is_told(small_config: Path, section: str, value: str) -> None:
    assert section.rpartition(".")[2] in mistakes(small_config, f"{section}={value}")
    inside = {"variants": "{a: {encoder: [1]}}", "first": "{model: [1]}"}
    for name, text in inside.items():
        assert name in mistakes(small_config, f"{name}={text}")


def test_a_variant_has_no_name_but_its_key(small_config: Path) -> None:
    assert "variants.a.name: a variant is called by its key, small-a" in mistakes(small_config, "variants.a.name=b")


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
        (
            "model.name=cprl",
            "model.name: no such choice 'cprl'; did you mean 'cprfl'? (choices: cprfl, hp_dval,",
        ),
        ("protocol=publish", "protocol: got 'publish'; did you mean 'published'?; valid: honest, published"),
        ("encoder.modle=x", "encoder.modle: no such setting; did you mean 'model'?"),
        ("dataset.splits.tset=x", "dataset.splits.tset"),
        ("train.select=best", "train.select: best needs train.validation > 0"),
        ("variants.x.model.dmi=3", "variants.x: 1 mistake\n  model.dmi: no such setting; did you mean 'dim'?"),
        ("name=a/b", "name: got 'a/b'"),
        ("train", "--set train: expected a.b=value"),
        ("seed=-1", "seed: got -1; input should be greater than or equal to 0"),
        ("train.finetune.augmentation.cutout=-3", "cutout: got -3; input should be greater than or equal to 0"),
        ("train.schedule_epochs=3", "schedule_epochs 3 ends before epochs 4"),
        ("output_dir=", "output_dir is empty"),
        ("data_root=", "data_root is empty"),
        ("dataset.groups={head: 5, tail: 8}", "dataset.groups: tail 8 is above head 5"),
        ("first.train.epochs=1", "first.train.backbone: frozen trains no image tower"),
        ("variants.x.first.train.epochs=1", "first.train.backbone: frozen trains no image tower"),
        ("first.variants={x: {seed: 1}}", "first.variants: an experiment that comes before has none"),
        ("model.name=coop", "model.name=coop learns through a text tower"),
        ("train.lr=[1", "--set train.lr=[1, line 1: not YAML"),
        (
            "model={name: ensemble, members: [{name: cprfl, dmi: 3}]}",
            "model.members.[0].dmi: no such setting; did you mean 'dim'?",
        ),
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
    assert "broken.yaml, line 2: not YAML: expected" in mistakes(tmp_path / "broken.yaml")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 3000)
    assert "deep.yaml: not YAML that can be read: it is nested too deeply" in mistakes(tmp_path / "deep.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "expected settings as `key: value`" in mistakes(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("name: x\n")
    text = mistakes(tmp_path / "empty.yaml")
    assert "dataset: missing; give it in the file or with --set dataset=..." in text


@pytest.mark.parametrize("text", ["2024_05_01", "runs #2", "007", "no", "1e3", "a=b", "null", "[x", "{}", "~"])
def test_a_setting_that_is_text_takes_the_text(small_config: Path, tmp_path: Path, text: str) -> None:
    assert load(small_config, [f"output_dir={tmp_path}/{text}"]).output_dir == f"{tmp_path}/{text}"
    column = load(small_config, [f"dataset.image_column={text}"]).dataset.model_dump()["image_column"]
    assert column == (None if text == "null" else text)
    assert load(small_config, [f"dataset.splits.train={text}"]).dataset.model_dump()["splits"]["train"].endswith(text)
    variant = load(small_config, [f"variants.x.dataset.labels_column={text}"]).variant("x")
    assert variant.dataset.model_dump()["labels_column"] == (None if text == "null" else text)


def test_text_in_a_file_is_taken_as_it_is_written(small_config: Path) -> None:
    text = small_config.read_text().replace("name: small", "name: 007").replace("    name: csv", "    name: csv")
    text = text.replace("dataset:\n", "dataset:\n  classes: [no, 007, yes]\n  labels_column: on\n")
    text += "feature_dir: null\npromotion: {class_floors: {no: 3}}\nvariants: {1: {dataset: {image_column: 08}}}\n"
    small_config.write_text(text.replace("feature_dir: /", "# "))
    experiment = load(small_config)
    dataset = experiment.dataset.model_dump()
    assert experiment.name == "007"
    assert dataset["classes"] == ["no", "007", "yes"]
    assert dataset["labels_column"] == "on"
    assert experiment.feature_dir is None
    assert experiment.promotion.class_floors == {"no": 3.0}
    assert experiment.variant("1").dataset.model_dump()["image_column"] == "08"
    small_config.write_text(text + "seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match="given more than once, in lines"):
        load(small_config)


def test_yaml_s_anchors_and_merges_are_read(tmp_path: Path, small_config: Path) -> None:
    text = small_config.read_text() + "variants:\n  a: &a {train: {epochs: 2}}\n  b: {<<: *a, seed: 3}\n  c: *a\n"
    small_config.write_text(text)
    experiment = load(small_config)
    assert experiment.variants["b"] == {"train": {"epochs": 2}, "seed": 3}
    assert experiment.variants["c"] == experiment.variants["a"]
    (tmp_path / "nothing.yaml").write_text("# nothing\n")
    assert "expected settings as `key: value`, got nothing" in mistakes(tmp_path / "nothing.yaml")


def test_a_separator_may_be_any_character(small_config: Path) -> None:
    assert load(small_config, ["dataset.separator=,"]).dataset.model_dump()["separator"] == ","
    assert load(small_config, ["dataset.separator= "]).dataset.model_dump()["separator"] == " "


def test_numbers_and_nothing_are_what_yaml_says(small_config: Path) -> None:
    experiment = load(small_config, ["train.clip_norm=null", "train.lr=1e-3", "feature_dir=null"])
    assert (experiment.train.clip_norm, experiment.train.lr, experiment.feature_dir) == (None, 0.001, None)


def test_the_experiment_before_is_this_one_with_its_changes(small_config: Path) -> None:
    change = "first={train: {backbone: adapter, distill: 0.5}, model: {name: linear_probe, standardize: false}}"
    experiment = load(small_config, [change])
    before = experiment.first_experiment
    assert before is not None
    assert (before.name, before.train.backbone, before.first) == ("small-first", "adapter", None)
    assert before.dataset == experiment.dataset
    assert experiment.tower_training == before.train
    with pytest.raises(ConfigError, match="the tower moves in `first`"):
        load(small_config, [change, "train.backbone=adapter", "model.standardize=false"])
