"""timm's models as encoders: what `forward_features` gives, without its prefix tokens, is the grid.

Of 1,356 models of timm 1.0.31 that were looked at (15 more, most of them XCiT, were not), 46 have no such grid and are
refused by name: CoaT, CrossViT, EfficientViM, PiT and VOLO.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from cprfl.data.storage import DataPath
from cprfl.encoders.base import ImageEncoder, ImageEncoderConfig, Resampling, freeze
from cprfl.encoders.timm_library import check_folder, check_name, load_file, new_model, timm_module
from cprfl.encoders.weights import from_hugging_face
from cprfl.errors import WeightsError

RANDOM = "random"


class TimmEncoder(ImageEncoder):
    """The backbone of a timm model.

    The global feature is what its classifier would see (``forward_head`` before the logits): a class token, a mean, an
    attention pool. Where it has no classifier it is the mean of the grid.
    """

    class Config(ImageEncoderConfig):
        """``model``: a name of timm's, with or without the tag of its weights (``vit_small_patch14_dinov2.lvd142m``).

        ``pretrained``: ``true``, a tag, or ``random``. ``weights``: a file instead, or the local folder of a Hugging
        Face repository. ``normalize: own`` takes colour statistics and interpolation from the model, and with
        ``resize: crop`` the share of the image that is cropped.
        """

        name: Literal["timm"] = "timm"
        model: str
        pretrained: bool | str = True
        weights: DataPath | None = None

        @model_validator(mode="after")
        def _weights_are_named_once(self) -> Self:
            if self.pretrained is False:
                raise ValueError("pretrained: false has no meaning; for random weights write pretrained: random")
            own = self.model.partition(".")[2]
            if own and self._tag not in ("", own):
                raise ValueError(f"model {self.model} and pretrained {self._tag} name two tags; leave one out")
            return self

        @property
        def _tag(self) -> str:
            return self.pretrained if isinstance(self.pretrained, str) and self.pretrained != RANDOM else ""

        @property
        def full_name(self) -> str:
            """The model's name with the tag of its weights, if one is given."""
            return f"{self.model}.{self._tag}" if self._tag and "." not in self.model else self.model

        def build(self, cache_dir: Path, *, loaded: bool = True) -> TimmEncoder:
            """The frozen backbone.

            Raises:
                WeightsError: where there is no such model, its weights cannot be had, or it has no grid.
            """
            encoder = TimmEncoder(self, _create(self, loaded))
            freeze(encoder)
            encoder.check_grid()
            return encoder

    def __init__(self, config: Config, model: Any) -> None:
        own = timm_module().data.resolve_model_data_config(model)
        statistics = (tuple(own["mean"]), tuple(own["std"]))
        resampling = Resampling(own["interpolation"], own["crop_pct"])
        super().__init__(config, config.image_size or own["input_size"][-1], statistics, resampling)
        self.name, self.model = config.model, model
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self.num_prefix_tokens: int = getattr(model, "num_prefix_tokens", 0)
        self.has_head = hasattr(model, "reset_classifier")

    def blocks(self) -> list[nn.Module]:
        """See `ImageEncoder.blocks`: a transformer's blocks, or a CNN's stages."""
        for name in ("blocks", "stages", "layers"):
            if (found := getattr(self.model, name, None)) is not None:
                return list(found)
        return [stage for number in range(1, 5) if (stage := getattr(self.model, f"layer{number}", None)) is not None]

    def encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageEncoder.encode`."""
        features = self.model.forward_features(images_B3HW)
        grid_BDhw = self._grid(features)
        if not self.has_head:
            return grid_BDhw, grid_BDhw.mean(dim=(2, 3))
        return grid_BDhw, self.model.forward_head(features, pre_logits=True)

    def check_grid(self) -> None:
        """Encode one image.

        Raises:
            WeightsError: where the model takes no images of this size, or gives no grid.
        """
        try:
            with torch.inference_mode():
                self(torch.zeros(1, 3, self.image_size, self.image_size))
        except WeightsError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            raise WeightsError(f"{self.name}: takes no images of {self.image_size} pixels: {error}") from None

    def _grid(self, features: Any) -> Tensor:
        """[B, D, h, w] of what ``forward_features`` gives: a grid, or tokens, the first of which may be no cells."""
        if isinstance(features, Tensor) and features.ndim == 4:
            grid_BDhw = features.movedim(-1, 1) if self.channels_last else features
            if grid_BDhw.shape[2:].numel() > 1:
                return grid_BDhw
        elif isinstance(features, Tensor) and features.ndim == 3:
            cells_BVD = features[:, self.num_prefix_tokens :]
            side = math.isqrt(cells_BVD.shape[1])
            if side > 1 and side * side == cells_BVD.shape[1]:
                return cells_BVD.transpose(1, 2).unflatten(2, (side, side))
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise WeightsError(f"{self.name}: its features ({shape}) are no grid of several cells; take another model")


def _create(config: TimmEncoder.Config, loaded: bool) -> Any:
    name, size, path = config.full_name, config.image_size, config.weights
    downloads = loaded and path is None and config.pretrained != RANDOM
    check_name(name, needs_weights=downloads)
    if downloads:
        return from_hugging_face(lambda: new_model(name, size, pretrained=True), config.model, name, "encoder.weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model(name, size)
    if loaded and path is not None:
        _check_settings(config, check_folder(path, name, model))
        load_file(model, path, name, size)
    return model


def _check_settings(config: TimmEncoder.Config, said: dict[str, Any]) -> None:
    """See that the settings have what the weights' folder says: images must be prepared alike without it."""
    if config.normalize != "own" or config.statistics is not None:
        said.pop("statistics", None)
    if config.image_size is not None:
        said.pop("image_size", None)
    if said:
        mend = " and ".join(f"encoder.{name}: {value}" for name, value in said.items())
        raise WeightsError(f"{config.weights}: its config.json differs from {config.full_name}; set {mend}")
