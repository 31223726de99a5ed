"""An experiment as one configuration value, and how a YAML file with overrides becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from cprfl.config import Config, SameAsRoot, validate
from cprfl.data.files import fingerprint
from cprfl.data.filesystems import absolute
from cprfl.data.readers.coco import CocoDataset
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.cvat import CvatDataset
from cprfl.data.readers.folders import FoldersDataset
from cprfl.data.readers.labelme import LabelmeDataset
from cprfl.data.readers.labelstudio import LabelStudioDataset
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.readers.openimages import OpenImagesDataset
from cprfl.data.readers.parquet_table import ParquetDataset
from cprfl.data.readers.voc import VocDataset
from cprfl.data.readers.webdataset import WebdatasetDataset
from cprfl.data.readers.yolo import YoloDataset
from cprfl.data.synthetic import SyntheticDataset
from cprfl.encoders.clip import OpenClipEncoder
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.text import GloveText, NpzText, OpenClipText, RandomText
from cprfl.encoders.timm import TimmEncoder
from cprfl.errors import CheckpointError, ConfigError
from cprfl.evaluation.comparison import PromotionConfig
from cprfl.evaluation.decisions import DecisionsConfig
from cprfl.losses import CONFIGS, AnyLoss
from cprfl.models import AnyMethod
from cprfl.named_places import PLACES, check_place
from cprfl.resources import FEW_IMAGES, ResourcesConfig, here
from cprfl.settings import merge, read
from cprfl.training.checkpoint import CheckpointInfo
from cprfl.training.config import TrainConfig

AnyDataset = Annotated[
    CocoDataset
    | CsvDataset
    | CvatDataset
    | FoldersDataset
    | LabelmeDataset
    | LabelStudioDataset
    | ListFilesDataset
    | OpenImagesDataset
    | ParquetDataset
    | SyntheticDataset
    | VocDataset
    | WebdatasetDataset
    | YoloDataset,
    Field(discriminator="name"),
]
AnyEncoder = Annotated[OpenClipEncoder.Config | CnnEncoder.Config | TimmEncoder.Config, Field(discriminator="name")]
AnyTextEncoder = Annotated[OpenClipText | GloveText | NpzText | RandomText, Field(discriminator="name")]

Changes = Annotated[dict[str, Any], SameAsRoot]
"""Settings of another experiment, where they differ."""


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
        first: the experiment that comes before this one, by what it changes: it trains the image tower
            (``train.backbone: adapter`` or ``finetune``), on whose features this one is then trained.
        decisions: when an image counts as showing a class; no weight depends on it.
        promotion: when a retrained model replaces the champion.
        variants: further experiments, each by what it changes; a section with another ``name`` replaces the section.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=0, ge=0, lt=2**31)
    data_root: str = "."
    output_dir: str = "outputs"
    feature_dir: str | None = None
    protocol: Literal["honest", "published"] = "honest"
    dataset: AnyDataset
    encoder: AnyEncoder
    text_encoder: AnyTextEncoder
    model: AnyMethod
    loss: AnyLoss = CONFIGS["asymmetric"](name="asymmetric")
    train: TrainConfig = TrainConfig()
    first: Changes | None = None
    resources: ResourcesConfig = ResourcesConfig()
    decisions: DecisionsConfig = DecisionsConfig()
    promotion: PromotionConfig = PromotionConfig()
    variants: dict[str, Changes] = {}
    _place: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _the_loss_is_asymmetric_unless_named(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("loss"), dict):
            return {**values, "loss": {"name": "asymmetric", **values["loss"]}}
        return values

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if "://" in self.output_dir:
            raise ValueError("output_dir must be a folder of a file system; feature_dir and data_root may be URIs")
        if self.name in ("cache", "mlflow"):
            raise ValueError(f"name {self.name!r} is taken by a folder of the same name under output_dir")
        own_split = "val" in (getattr(self.dataset, "splits", None) or {})
        if self.train.select == "best" and self.protocol == "honest" and self.train.validation == 0 and not own_split:
            raise ValueError(
                "train.select: best needs train.validation > 0 (a split of the training images), or dataset.splits.val"
            )
        self._check_that_the_encoders_suit_the_method()
        if self.selects == "folds" and self.protocol == "published":
            raise ValueError("train.select: folds never looks at the test images; protocol: published chooses by them")
        if self.train.moves_tower:
            self._check_that_the_tower_can_move()
        if (before := self.first_experiment) is not None and not before.train.moves_tower:
            raise ValueError("first.train.backbone: frozen trains no image tower; set it to adapter or finetune")
        return self

    def _check_that_the_encoders_suit_the_method(self) -> None:
        chosen = f"model.name={self.model.name}"
        if self.model.needs_text_tower and self.text_encoder.name != "open_clip":
            raise ValueError(f"{chosen} learns through a text tower; set text_encoder.name: open_clip")
        if self.model.needs_joint_space and not self.joint_space:
            raise ValueError(
                f"{chosen} compares images with texts; give encoder and text_encoder the same open_clip model"
            )
        if self.model.needs_joint_cells and not getattr(self.encoder, "project", False):
            raise ValueError(f"{chosen} compares cells with texts; set encoder.project: true and encoder.layer: -1")
        if self.model.needs_moving_tower and not self.train.moves_tower:
            raise ValueError(
                f"{chosen}, as it is set, trains the image tower; set train.backbone to adapter or finetune"
            )

    def _check_that_the_tower_can_move(self) -> None:
        moved = f"train.backbone: {self.train.backbone}"
        if self.model.needs_statistics:
            raise ValueError(f"model.standardize needs statistics of fixed features; set it to false with {moved}")
        if self.model.in_closed_form or not self.model.by_gradients:
            raise ValueError(
                f"model.name={self.model.name} is fitted to fixed features; {moved} has nothing to train with"
            )
        if self.encoder.views > 1:
            raise ValueError("encoder.views is for cached features; train.finetune.augmentation augments on the fly")
        if self.first is not None:
            raise ValueError(
                f"{moved}: the tower moves in `first`; this experiment takes its features (backbone: frozen)"
            )

    @property
    def folder(self) -> Path:
        """Where this experiment's results are: ``outputs/<name>``, or the place below it that `placed` names."""
        return Path(self.output_dir) / self.name / self._place

    def placed(self, place: str) -> Experiment:
        """This experiment with its results in a folder of its own below ``outputs/<name>``.

        A challenger, or what a sweep found, leaves the files of the model that is there as they are.
        """
        result = self.model_copy()
        result._place = place
        return result

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
        """Changes with every setting that can change the trained weights, but for those that choose the data.

        Those change what the data are named by, or change nothing.
        """
        values = self.model_dump(mode="json", include={"seed", "protocol", "model", "loss", "train"})
        del values["train"]["features_in_memory_mb"], values["train"]["finetune"]["num_processes"]
        return fingerprint([values, self.resources.world_size])

    @property
    def joint_space(self) -> bool:
        """Whether images and texts are encoded by one CLIP, as far as the configuration tells.

        Embeddings from a file are taken at their word: their width is compared where the method is built.
        """
        image, text = self.encoder, self.text_encoder
        if not isinstance(image, OpenClipEncoder.Config) or not isinstance(text, OpenClipText):
            return isinstance(image, OpenClipEncoder.Config) and isinstance(text, NpzText)
        same_weights = image.weights == text.weights and (image.weights or image.pretrained == text.pretrained)
        return image.model == text.model and bool(same_weights)

    @property
    def selects(self) -> Literal["last", "best", "folds"]:
        """Which weights are kept; see ``train.select``."""
        return self.train.select or ("folds" if self.model.folds and self.protocol == "honest" else "last")

    @property
    def epochs(self) -> int:
        """Epochs that are trained; 0 where the method is not fitted by gradients."""
        return self.train.epochs if self.model.by_gradients else 0

    def extracts_in_this_process(self, num_images: int) -> bool:
        """Whether so many images are encoded without Ray."""
        workers = self.encoder.num_workers
        return here(workers) and (workers == 0 or num_images <= FEW_IMAGES)

    @property
    def tower_training(self) -> TrainConfig | None:
        """How the image tower came to differ from the configured one, here or in the experiment before; if it does."""
        before = self.first_experiment
        train = before.train if before is not None else self.train
        return train if train.moves_tower else None

    @property
    def first_experiment(self) -> Experiment | None:
        """The experiment that trains the tower, ``<name>-first`` unless it has a name; none where there is none."""
        if self.first is None:
            return None
        nested = sorted({"first", "variants"} & self.first.keys())
        if nested:
            raise ConfigError(f"first.{nested[0]}: an experiment that comes before has none")
        base = self.model_dump(mode="json", exclude={"variants", "first"})
        merged = merge(base, {"name": f"{self.name}-first", **self.first})
        return validate(Experiment, merged, source="first", data_root=self.data_root)

    def variant(self, key: str) -> Experiment:
        """This experiment with one variant's changes, named ``<name>-<key>``.

        Where its own experiment before would train just what this one's does, it is this one's.
        """
        if "name" in self.variants[key]:
            raise ConfigError(f"variants.{key}.name: a variant is called by its key, {self.name}-{key}; leave it out")
        base = self.model_dump(mode="json", exclude={"variants"})
        merged = merge(base, {**self.variants[key], "name": f"{self.name}-{key}"})
        variant = validate(Experiment, merged, source=f"variants.{key}", data_root=self.data_root)
        mine, its = self.first_experiment, variant.first_experiment
        if mine is not None and its is not None and mine.model_copy(update={"name": its.name}) == its:
            return variant.model_copy(update={"first": {**(variant.first or {}), "name": mine.name}})
        return variant

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
        return validate(Experiment, merge(self.model_dump(mode="json"), changes), source="settings").placed(self._place)


def experiment_of(info: CheckpointInfo, folder: Path) -> Experiment:
    """The experiment that made a checkpoint.

    Raises:
        CheckpointError: where it has settings that are no longer known.
    """
    try:
        return validate(Experiment, info.experiment, source="its experiment")
    except ConfigError as error:
        raise CheckpointError(f"{folder}: written by another version of cprfl; train again ({error})") from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from YAML and ``a.b=value`` overrides.

    Raises:
        ConfigError: with every mistake in one list.
    """
    merged = read(Experiment, path, overrides)
    for name in PLACES:
        check_place(f"{path}: {name}", merged.get(name, "."), may_be_none=name == "feature_dir")
    merged["output_dir"] = absolute(str(merged.get("output_dir", "outputs")))
    merged["data_root"] = absolute(str(merged.get("data_root", ".")))
    if merged.get("feature_dir"):
        merged["feature_dir"] = absolute(str(merged["feature_dir"]))
    experiment = validate(Experiment, merged, source=str(path), data_root=merged["data_root"])
    for key in experiment.variants:
        experiment.variant(key)
    return experiment
