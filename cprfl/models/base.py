"""What a method is: the classifiers of the tables, and those that a user adds, answer the same five questions.

1. What it sees of an image: `Method.forward` gets the encoder's cells and its summary, cached or computed just now.
2. Which facts it needs: `Facts`, from which, with its settings, it is built; they are saved with every checkpoint.
3. Whether it needs the text tower: then it is built with it, and what its prompts become is baked (`Method.bake`), so
   that a trained model predicts without. The tower is frozen and in no checkpoint.
4. How it is fitted: in closed form (`Method.fit`), by gradients (`Method.losses`), by both, or not at all.
5. How it scores: `Method.forward` in evaluation mode, in evaluation, prediction and serving alike.

The loop, checkpoints, evaluation, sweeps, registry and the command line know methods only by these answers.

Shapes: B images, V cells of D channels, E channels of the summary, C classes, M members.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cprfl.config import Config
from cprfl.data.long_tail import class_counts, co_occurrence, num_training_images
from cprfl.data.manifest import Manifest
from cprfl.data.tensor_files import read_tensors, write_tensors
from cprfl.encoders.base import Encoded
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.errors import CheckpointError, ShapeError

Criterion = Callable[[Tensor, Tensor], Tensor]
"""A loss of logits [B, C] and multi-hot targets [B, C], NaN where nobody knows."""

Features = Callable[[], Iterator[tuple[Encoded, Tensor]]]
"""One pass over cached features and targets [B, C] of images, NaN where nobody knows; in the same order each time."""


@dataclass(frozen=True)
class Facts:
    """What data set and encoders say; a method is rebuilt from it and its settings alone.

    Attributes:
        class_names: of the C classes.
        class_counts_C: images of the data set's training split known to show each class, int64.
        co_occurrence_CC: images known to show both classes, int64; of the split without what is held out of it.
        num_images: of the data set's training split.
        text_embeddings_CM: one embedding per class.
        grid_dim: D, channels of a cell.
        global_dim: E, channels of the summary.
        grid_mean_D: mean of each channel over all cells of the training images; zeros where nobody asked for it.
        grid_std_D: standard deviation likewise; ones where nobody asked for it.
        joint_space: whether image summaries and text embeddings are of one CLIP.
    """

    class_names: tuple[str, ...]
    class_counts_C: Tensor
    co_occurrence_CC: Tensor
    num_images: int
    text_embeddings_CM: Tensor
    grid_dim: int
    global_dim: int
    grid_mean_D: Tensor
    grid_std_D: Tensor
    joint_space: bool = False

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @classmethod
    def of_text(cls, text_embeddings_CM: Tensor, grid_dim: int) -> Facts:
        """What a head needs that is built by hand, without a data set: text embeddings and the width of the cells."""
        num_classes = len(text_embeddings_CM)
        names, none = tuple(f"class {number}" for number in range(num_classes)), torch.zeros(num_classes)
        return cls(names, none.long(), torch.zeros(num_classes, num_classes).long(), 0, text_embeddings_CM, grid_dim, 0,
                   torch.zeros(grid_dim), torch.ones(grid_dim))  # fmt: skip

    @classmethod
    def of_data(
        cls,
        training: Manifest,
        text_embeddings_CM: Tensor,
        grid_dim: int,
        global_dim: int,
        statistics: tuple[Tensor, Tensor] | None = None,
        joint_space: bool = False,
    ) -> Facts:
        """The facts of training images, with the mean and deviation of their cells where they are known."""
        mean_D, std_D = statistics or (torch.zeros(grid_dim), torch.ones(grid_dim))
        together_CC = torch.from_numpy(co_occurrence(training).toarray())
        return cls(
            training.class_names, torch.from_numpy(class_counts(training)), together_CC,
            num_training_images(training), text_embeddings_CM, grid_dim, global_dim, mean_D, std_D, joint_space,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in values.items() if name not in tensors}
        write_tensors(path, tensors, {"facts": json.dumps(rest, ensure_ascii=False)})

    @classmethod
    def load(cls, path: Path) -> Facts:
        """Read what `save` wrote.

        Raises:
            CheckpointError: where the file is missing or damaged.
        """
        tensors, metadata = read_tensors(path, CheckpointError, "train again")
        rest: dict[str, Any] = json.loads(metadata["facts"])
        rest["class_names"] = tuple(rest["class_names"])
        return cls(**rest | tensors)


class Method(nn.Module, ABC):
    """A classifier of encoded images.

    What gradients train are its parameters that require them; what else it learns are buffers.

    Attributes:
        lr: peak learning rate that suits it, where ``train.lr`` does not say.
    """

    lr: float = 1e-3

    @abstractmethod
    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of cells and summaries."""

    def attention(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor | None:
        """Where the method looks for each class: weights [B, C, V] of the cells, of sum 1, as `forward` uses them.

        Heads are averaged. None where it does not tell cells apart.
        """
        return None

    def member_logits(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [M, B, C] of the members that `weigh_members` weighs; of the method itself where it has none."""
        logits_BC: Tensor = self(grid_BVD, global_BE)
        return logits_BC[None]

    def weigh_members(self, logits_MNC: Tensor, targets_NC: Tensor) -> dict[str, float]:
        """Learn from out-of-fold logits of the members on all training images, and say what was found, by names."""
        return {}

    def mix(self, logits_MNC: Tensor) -> Tensor:
        """Logits [N, C] of the method from those of its members; of its only one where it has none."""
        return logits_MNC[0]

    @property
    def learned_through_text(self) -> list[str]:
        """Names of the parameters that only the text tower can make use of: `bake` takes their place."""
        return []

    def bake(self) -> None:
        """Write into buffers what the text tower makes of the prompts, so that scoring needs it no more."""

    def fit(self, features: Features) -> None:
        """Fit what is fitted in closed form to the training images."""

    def losses(
        self, criterion: Criterion, targets_BC: Tensor, grid_BVD: Tensor, global_BE: Tensor
    ) -> dict[str, Tensor]:
        """What training minimises the sum of, by the names under which it is logged: the criterion, and penalties."""
        return {"criterion": criterion(self(grid_BVD, global_BE), targets_BC)}


class MethodConfig(Config):
    """Settings of a method, and what can be known of it before it is built.

    Attributes:
        brings: settings of an experiment that suit it, where it is chosen by its name alone (`cprfl benchmark`).
    """

    brings: ClassVar[Mapping[str, Any]] = {}

    name: str

    @property
    def by_gradients(self) -> bool:
        """Whether gradients train anything of it."""
        return True

    @property
    def in_closed_form(self) -> bool:
        """Whether something of it is fitted to cached features, which a moving tower would leave behind."""
        return False

    @property
    def needs_statistics(self) -> bool:
        """Whether it asks for the mean and deviation of the training cells; those of a moving tower are not known."""
        return False

    @property
    def needs_text_tower(self) -> bool:
        """Whether it is trained through CLIP's text tower."""
        return False

    @property
    def needs_joint_space(self) -> bool:
        """Whether it compares summaries of images with texts: image and text encoder must be of one CLIP."""
        return self.needs_joint_cells

    @property
    def needs_joint_cells(self) -> bool:
        """Whether it compares cells with texts too: ``encoder.project`` brings them into the joint space."""
        return False

    @property
    def folds(self) -> int:
        """Folds of the training images on which copies of it are scored that have not seen them; 0 for none.

        With these scores it is weighed before it is fitted (`Method.weigh_members`).
        """
        return 0

    @property
    def needs_moving_tower(self) -> bool:
        """Whether the image tower is what it trains."""
        return False

    @abstractmethod
    def build(self, facts: Facts, text_tower: TextTower | None = None) -> Method:
        """The method, freshly initialised from torch's random state; with a text tower if it is to learn through it."""


class ClosedFormConfig(MethodConfig):
    """A method that is fitted in closed form alone."""

    @property
    def by_gradients(self) -> bool:
        """See `MethodConfig.by_gradients`."""
        return False

    @property
    def in_closed_form(self) -> bool:
        """See `MethodConfig.in_closed_form`."""
        return True


class StandardizingConfig(MethodConfig):
    """``standardize``: bring each channel of the cells to mean 0 and deviation 1 first."""

    standardize: bool = False

    @property
    def needs_statistics(self) -> bool:
        """See `MethodConfig.needs_statistics`."""
        return self.standardize

    def standardization(self, facts: Facts) -> nn.Module:
        """The first layer of a model: what ``standardize`` asks for, with the statistics of the training images."""
        return Standardize(facts.grid_mean_D, facts.grid_std_D) if self.standardize else nn.Identity()


class Standardize(nn.Module):
    """Subtract a fixed mean and divide by a fixed deviation, both [D]; a constant channel becomes 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean_D: Tensor, std_D: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean_D.clone(), persistent=False)  # facts, which the checkpoint has
        self.register_buffer("std", std_D.clamp(min=1e-6), persistent=False)

    def forward(self, features_BVD: Tensor) -> Tensor:
        """[B, V, D] to [B, V, D]."""
        return (features_BVD - self.mean) / self.std


def check_joint_space(facts: Facts, name: str, cells: bool) -> None:
    """Refuse text embeddings, summaries or, where they are compared too, cells of another width than the others.

    Raises:
        ShapeError: naming the widths and the settings that bring them together.
    """
    text, summary = facts.text_embeddings_CM.shape[1], facts.global_dim
    if text != summary or (cells and facts.grid_dim != summary):
        raise ShapeError(
            f"model.name={name}: compares images with texts, but texts have {text} channels, the images' summaries "
            f"{summary}, their cells {facts.grid_dim}; give encoder and text_encoder the same open_clip model"
            + (", and set encoder.project: true, encoder.layer: -1" if cells else "")
        )


def check_features(features_BVD: Tensor, grid_dim: int) -> None:
    """Refuse cells that the model was not built for.

    Raises:
        ShapeError: naming both shapes.
    """
    if features_BVD.ndim != 3 or features_BVD.shape[-1] != grid_dim:
        raise ShapeError(
            f"features have shape {list(features_BVD.shape)}, the model takes [images, cells, {grid_dim}]; "
            "train and predict with the same encoder (encoder.model, encoder.layer, encoder.project)"
        )


def feature_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] over images and cells of batches of grids [n, V, D]."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for grids_NVD in batches:
        values = grids_NVD.flatten(0, 1).double()
        count, total, squares = count + len(values), total + values.sum(dim=0), squares + values.square().sum(dim=0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()
