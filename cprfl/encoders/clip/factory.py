"""The one place that creates open_clip's models, and their image towers as encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from cprfl.data.storage import DataPath, local_copy
from cprfl.encoders.base import ImageEncoder, ImageEncoderConfig, Statistics, freeze
from cprfl.encoders.clip.embedded import embedded_weights
from cprfl.encoders.clip.library import EMBEDDED, open_clip_module, quietly
from cprfl.encoders.clip.similarity import attend_by_similarity
from cprfl.encoders.clip.statistics import own_statistics
from cprfl.encoders.weights import from_hugging_face, load_weights, weights_file
from cprfl.errors import WeightsError

RANDOM = "random"


def create_clip(
    model: str, pretrained: str, weights: str | None, cache_dir: Path, image_size: int | None = None
) -> torch.nn.Module:
    """An open_clip model with its weights, frozen and in evaluation mode.

    Args:
        model: a model name of open_clip's, or `EMBEDDED`.
        pretrained: a tag of open_clip's, ``embedded`` (train the embedded model, once) or ``random``.
        weights: a local file or folder, used instead of the tag.
        cache_dir: where weights trained here are kept.
        image_size: input side of a vision transformer, whose position embeddings are interpolated.

    Raises:
        WeightsError: where the model is unknown or its weights cannot be had.
    """
    open_clip = open_clip_module()
    if model not in open_clip.list_models():
        raise WeightsError(f"{model!r}: no such open_clip model; `open_clip.list_models()` lists {EMBEDDED} and others")
    if pretrained == "embedded" and weights is None:
        if model != EMBEDDED:
            raise WeightsError(f"{model}: the tag 'embedded' belongs to {EMBEDDED}; give another tag or a weights file")
        weights = str(embedded_weights(cache_dir))
    options: dict[str, Any] = {"force_image_size": image_size, "pretrained_image": False}
    if weights is not None:
        created = quietly(open_clip.create_model, model, **options)
        weights = weights_file(weights)
        load_weights(weights)  # open_clip reads it once more; this names what is wrong with the file
        try:
            with local_copy(weights) as path:
                open_clip.load_checkpoint(created, str(path), weights_only=True)
        except (RuntimeError, AssertionError) as error:  # open_clip asserts on text towers of another width
            raise WeightsError(f"{weights}: does not fit {model}: {str(error).splitlines()[0]}") from None
    elif pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            created = quietly(open_clip.create_model, model, **options)
    else:
        if pretrained not in open_clip.list_pretrained_tags_by_model(model):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
            raise WeightsError(f"{model}: no pretrained tag {pretrained!r}; tags: {tags}")
        created = from_hugging_face(
            lambda: quietly(open_clip.create_model, model, pretrained=pretrained, **options),
            model, pretrained, "encoder.weights or text_encoder.weights",
        )  # fmt: skip
    return created.eval().requires_grad_(False)


class OpenClipEncoder(ImageEncoder):
    """The image tower of any open_clip model; the global feature is its embedding in the joint space."""

    class Config(ImageEncoderConfig):
        """``layer``: the stage or block whose output is the grid, -1 being the last, after its final norm.

        ``project``: bring every cell into the joint space of image and text, by what the tower would make of a cell
        alone: the same norm and projection as the pooled feature's, CLIP's ResNets' value and output projections.
        ``attention``: how the cells of a vision transformer's last block attend: as they were trained (``own``), or to
        what is like them (``similarity``; `cprfl.encoders.clip.similarity`).
        ``weights``: a file, or the local folder of a Hugging Face repository, instead of the tag; ``pretrained`` says
        then which tag they are of, for its colour statistics.
        """

        name: Literal["open_clip"] = "open_clip"
        model: str
        pretrained: str = "openai"
        weights: DataPath | None = None
        layer: int = -1
        project: bool = False
        attention: Literal["own", "similarity"] = "own"

        @model_validator(mode="after")
        def _what_the_last_layer_alone_can_do(self) -> Self:
            if self.project and self.layer != -1:
                raise ValueError("project needs layer -1: only the last layer's cells have a projection")
            if self.attention == "similarity" and self.layer != -1:
                raise ValueError("attention: similarity needs layer -1: it is the last block that attends otherwise")
            return self

        def build(self, cache_dir: Path, *, loaded: bool = True) -> OpenClipEncoder:
            """The frozen image tower.

            Raises:
                WeightsError: where the weights cannot be had, or the tower cannot do what is asked of it.
            """
            wants_own = self.normalize == "own" and self.statistics is None
            statistics = own_statistics(self.model, self.pretrained, self.weights if wants_own else None)
            forced = self.image_size if "ViT" in self.model else None
            pretrained, weights = (self.pretrained, self.weights) if loaded else (RANDOM, None)
            clip: Any = create_clip(self.model, pretrained, weights, cache_dir, forced)
            return freeze(OpenClipEncoder(self, clip.visual, statistics))  # type: ignore[return-value]

    def __init__(self, config: Config, visual: Any, statistics: Statistics) -> None:
        size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
        super().__init__(config, config.image_size or size, statistics)
        self.visual = visual
        self.layer, self.project = config.layer, config.project
        if self.project and self._projection() is None:
            raise WeightsError(f"{config.model}: its image tower has no projection of single cells; set project: false")
        if config.attention == "similarity":
            attend_by_similarity(visual, config.model)

    def blocks(self) -> list[torch.nn.Module]:
        """See `ImageEncoder.blocks`: a transformer's layers, or a CNN's stages."""
        trunk = getattr(self.visual, "trunk", self.visual)  # timm's towers are wrapped
        layers = getattr(getattr(trunk, "transformer", None), "resblocks", None)
        if layers is None:
            layers = getattr(trunk, "blocks", None) or getattr(trunk, "stages", None)
        if layers is None:
            layers = [
                stage for name in ("layer1", "layer2", "layer3", "layer4") if (stage := getattr(trunk, name, None))
            ]
        return list(layers)

    def encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageEncoder.encode`."""
        indices = None if self.layer == -1 else [self.layer, -1]
        # CoCa's final norm is that of its attention pool's output, which has another width than the cells.
        has_own_norm = getattr(self.visual, "attn_pool", None) is None
        wanted: dict[str, Any] = {
            "indices": 1 if indices is None else indices, "normalize_intermediates": has_own_norm
        }  # fmt: skip
        attention_pool = getattr(self.visual, "attnpool", None)
        if attention_pool is None:
            output = self.visual.forward_intermediates(images_B3HW, **wanted)
            global_BE = output["image_features"]
        else:  # CLIP's ResNets: the pool's position embeddings fix its input, so the grid is brought to that size
            output = self.visual.forward_intermediates(images_B3HW, intermediates_only=True, **wanted)
            side = round((attention_pool.positional_embedding.shape[0] - 1) ** 0.5)
            global_BE = attention_pool(F.adaptive_avg_pool2d(output["image_intermediates"][-1], side))
        grid_BDhw = output["image_intermediates"][0]
        return self._projected(grid_BDhw) if self.project else grid_BDhw, global_BE

    def _projected(self, grid_BDhw: Tensor) -> Tensor:
        """Cells in the joint space [B, E, h, w].

        Some of timm's trunks norm after pooling (ConvNeXt's ``head.norm``, a ViT's ``fc_norm``): there each cell is
        normed like a pooled feature, so their projections' mean is not the projection of their mean.
        """
        trunk = getattr(self.visual, "trunk", None)
        of_maps, of_tokens = getattr(getattr(trunk, "head", None), "norm", None), getattr(trunk, "fc_norm", None)
        if of_maps is not None:
            grid_BDhw = of_maps(grid_BDhw)
        if of_tokens is not None:
            grid_BDhw = of_tokens(grid_BDhw.movedim(1, -1)).movedim(-1, 1)
        weight_ED, bias_E = self._projection()  # type: ignore[misc]
        return torch.einsum("bdhw,ed->behw", grid_BDhw, weight_ED) + bias_E[:, None, None]

    def _projection(self) -> tuple[Tensor, Tensor] | None:
        """Weight [E, D] and bias [E] that bring one cell into the joint space, where the tower has them."""
        visual = self.visual
        if getattr(visual, "attn_pool", None) is not None:  # CoCa's projects what its attention pool gives
            return None
        if hasattr(visual, "attnpool"):  # attention over a single cell is its value projection
            value, out = visual.attnpool.v_proj, visual.attnpool.c_proj
            return out.weight @ value.weight, out.weight @ value.bias + out.bias
        if getattr(visual, "proj", None) is not None:
            return visual.proj.T, visual.proj.new_zeros(visual.proj.shape[1])
        linear = getattr(getattr(visual, "head", None), "proj", None)
        if isinstance(linear, torch.nn.Linear):
            bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
            return linear.weight, bias
        return None
