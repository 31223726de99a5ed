"""An experiment as one configuration value, and how a YAML file with overrides becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cprfl.comparison import PromotionConfig
from cprfl.config import Config, validate
from cprfl.data.files import fingerprint
from cprfl.data.readers.coco import CocoDataset
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.readers.voc import VocDataset
from cprfl.data.synthetic import SyntheticDataset
from cprfl.encoders.clip import OpenClipEncoder
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.text import GloveText, NpzText, OpenClipText, RandomText
from cprfl.errors import ConfigError
from cprfl.losses import AsymmetricLoss, DistributionBalancedLoss
from cprfl.losses.focal import BceConfig, ClassBalancedFocalConfig, FocalConfig, ReweightedConfig, SoftMarginConfig
from cprfl.models import CPRFL, LinearProbe
from cprfl.training.config import TrainConfig

AnyDataset = Annotated[
    CocoDataset | VocDataset | ListFilesDataset | CsvDataset | SyntheticDataset, Field(discriminator="name")
]
AnyEncoder = Annotated[OpenClipEncoder.Config | CnnEncoder.Config, Field(discriminator="name")]
AnyTextEncoder = Annotated[OpenClipText | GloveText | NpzText | RandomText, Field(discriminator="name")]
AnyModel = Annotated[CPRFL.Config | LinearProbe.Config, Field(discriminator="name")]
AnyLoss = Annotated[
    AsymmetricLoss.Config
    | DistributionBalancedLoss.Config
    | ClassBalancedFocalConfig
    | FocalConfig
    | ReweightedConfig
    | BceConfig
    | SoftMarginConfig,
    Field(discriminator="name"),
]


class ResourcesConfig(Config):
    """What a training run takes of the Ray cluster.

    ``cpus_per_worker``: all of a single machine's, shared evenly, unless given. ``gpu``: one per worker, if the
    cluster has any (``auto``), always or never. ``max_failures``: times that a training whose worker or node died goes
    on from its last checkpoint, waiting up to a minute for other resources.
    """

    num_workers: PositiveInt = 1
    cpus_per_worker: PositiveInt | None = None
    gpu: Literal["auto", "always", "never"] = "auto"
    max_failures: NonNegativeInt = 3


class Experiment(Config):
    """Everything that determines a run.

    Attributes:
        name: of the folder under ``output_dir``, of the MLflow experiment and of the registered model.
        seed: of every random number.
        data_root: base of every relative path in ``dataset``, ``encoder`` and ``text_encoder``.
        output_dir: where everything is written.
        feature_dir: path or URI (``s3://bucket/prefix``) of the feature stores; ``output_dir/cache/features`` unless
            given.
        protocol: ``honest`` never looks at the test images before the end; ``published`` keeps the epoch with the
            best test mAP, as the released codes do, and says so in every result.
        promotion: when a retrained model replaces the champion.
        variants: further experiments, each by what it changes; a section with another ``name`` replaces the section.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = 0
    data_root: str = "."
    output_dir: str = "outputs"
    feature_dir: str | None = None
    protocol: Literal["honest", "published"] = "honest"
    dataset: AnyDataset
    encoder: AnyEncoder
    text_encoder: AnyTextEncoder
    model: AnyModel
    loss: AnyLoss = AsymmetricLoss.Config()
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()
    promotion: PromotionConfig = PromotionConfig()
    variants: dict[str, dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _the_loss_is_asymmetric_unless_named(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("loss"), dict):
            return {**values, "loss": {"name": "asymmetric", **values["loss"]}}
        return values

    @model_validator(mode="after")
    def _selection_has_a_split_to_select_on(self) -> Self:
        if "://" in self.output_dir:
            raise ValueError("output_dir must be a folder of a file system; feature_dir and data_root may be URIs")
        if self.name in ("cache", "mlflow"):
            raise ValueError(f"name {self.name!r} is taken by a folder of the same name under output_dir")
        if self.train.select == "best" and self.protocol == "honest" and self.train.validation == 0:
            raise ValueError("train.select: best needs train.validation > 0 (a split of the training images)")
        if self.train.backbone == "finetune":
            if self.model.standardize:
                raise ValueError(
                    "model.standardize needs statistics of fixed features; set it to false with backbone: finetune"
                )
            if self.encoder.views > 1:
                raise ValueError(
                    "encoder.views is for cached features; train.finetune.augmentation augments on the fly"
                )
        return self

    @property
    def folder(self) -> Path:
        """Where this experiment's results are."""
        return Path(self.output_dir) / self.name

    @property
    def cache_dir(self) -> Path:
        """Where features, text embeddings and embedded encoders are kept, for all experiments."""
        return Path(self.output_dir) / "cache"

    @property
    def feature_root(self) -> str:
        """Path or URI of the folder that holds one feature store per key."""
        return self.feature_dir or str(self.cache_dir / "features")

    @property
    def training_fingerprint(self) -> str:
        """Changes with every setting that can change the trained weights."""
        others = {"variants", "promotion", "output_dir", "feature_dir", "data_root"}
        return fingerprint(self.model_dump(mode="json", exclude=others))

    def variant(self, key: str) -> Experiment:
        """This experiment with one variant's changes, named ``<name>-<key>``."""
        base = self.model_dump(mode="json", exclude={"variants"})
        merged = _merge(base, {**self.variants[key], "name": f"{self.name}-{key}"})
        return validate(Experiment, merged, source=f"variants.{key}")

    def settings(self, paths: Iterable[str]) -> dict[str, Any]:
        """The values at those of the paths (``loss.gamma_neg``) that this experiment has."""
        found, values = {}, self.model_dump(mode="json")
        for path in paths:
            value: Any = values
            for section in path.split("."):
                value = value.get(section) if isinstance(value, dict) else None
            if value is not None:
                found[path] = value
        return found

    def changed(self, settings: Mapping[str, Any]) -> Experiment:
        """This experiment with some settings, by their paths (``loss.gamma_neg``), set to other values.

        Raises:
            ConfigError: listing what is wrong with them.
        """
        changes: dict[str, Any] = {}
        for path, value in settings.items():
            *sections, last = path.split(".")
            place = changes
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return validate(Experiment, _merge(self.model_dump(mode="json"), changes), source="settings")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from YAML and ``a.b=value`` overrides.

    Raises:
        ConfigError: with every mistake in one list.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: configuration file not found")
    wrong = [override for override in overrides if "=" not in override or override.startswith("=")]
    if wrong:
        raise ConfigError(f"--set {wrong[0]}: expected a.b=value")
    try:
        base = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        changes = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(base, dict) or not isinstance(changes, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, got a {type(base).__name__}")
    merged = _merge(base, changes)
    merged["output_dir"] = str(merged.get("output_dir", "outputs"))
    if "://" not in merged["output_dir"]:
        merged["output_dir"] = str(Path(merged["output_dir"]).absolute())
    if merged.get("feature_dir") and "://" not in merged["feature_dir"]:
        merged["feature_dir"] = str(Path(merged["feature_dir"]).absolute())
    merged["data_root"] = str(merged.get("data_root", "."))
    if "://" not in merged["data_root"]:
        merged["data_root"] = str(Path(merged["data_root"]).absolute())
    experiment = validate(Experiment, merged, source=str(path), data_root=merged["data_root"])
    for key in experiment.variants:
        experiment.variant(key)
    return experiment


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """OmegaConf's merge, except that a section whose ``name`` changes is replaced: its settings belong to another."""
    kept = {key: {} if _picks_another(base[key], changes.get(key)) else base[key] for key in base}
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(kept), OmegaConf.create(changes)))
    assert isinstance(merged, dict)
    return merged


def _picks_another(section: Any, change: Any) -> bool:
    if not isinstance(section, dict) or not isinstance(change, dict):
        return False
    return "name" in change and change["name"] != section.get("name")
