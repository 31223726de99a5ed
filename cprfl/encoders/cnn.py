"""torchvision's CNNs as encoders: ResNet-50, ResNet-101 and SqueezeNet 1.1 trained on ImageNet.

timm has no SqueezeNet, so torchvision stays. Its ResNets are timm's too: ``{name: timm, model: resnet101.tv_in1k,
normalize: imagenet}`` gives the same features of the same weights, bit for bit (``normalize: own`` would resize
bilinearly, as they were trained). They keep their name here because the published protocol, its checkpoints and every
feature store of theirs are named by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cprfl.data.storage import DataPath
from cprfl.encoders.base import STATISTICS, ImageEncoder, ImageEncoderConfig, freeze
from cprfl.encoders.weights import from_hub, load_into, load_weights
from cprfl.errors import WeightsError
from cprfl.torchvision_cpu import ensure_torchvision


class CnnEncoder(ImageEncoder):
    """The convolutional part of a torchvision model; the global feature is the mean over its grid."""

    class Config(ImageEncoderConfig):
        """``pretrained``: a tag of torchvision's weights or ``random``; ``weights``: a local file instead."""

        name: Literal["torchvision"] = "torchvision"
        model: Literal["resnet50", "resnet101", "squeezenet1_1"]
        pretrained: str = "IMAGENET1K_V1"
        weights: DataPath | None = None

        def build(self, cache_dir: Path, *, loaded: bool = True) -> CnnEncoder:
            """The frozen CNN.

            Raises:
                WeightsError: where the weights cannot be had or do not fit.
            """
            return freeze(CnnEncoder(self, _load(self, loaded)))  # type: ignore[return-value]

    def __init__(self, config: Config, cnn: Any) -> None:
        super().__init__(config, config.image_size or 224, STATISTICS["imagenet"])
        if config.model.startswith("resnet"):
            stem = [cnn.conv1, cnn.bn1, cnn.relu, cnn.maxpool]
            self.cnn = nn.Sequential(*stem, cnn.layer1, cnn.layer2, cnn.layer3, cnn.layer4)
        else:
            self.cnn = cnn.features

    def blocks(self) -> list[nn.Module]:
        """See `ImageEncoder.blocks`: a ResNet's stages, SqueezeNet's fire modules."""
        return [stage for stage in self.cnn if list(stage.children())]

    def encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageEncoder.encode`."""
        grid_BDhw = self.cnn(images_B3HW)
        return grid_BDhw, grid_BDhw.mean(dim=(2, 3))


def _load(config: CnnEncoder.Config, loaded: bool) -> nn.Module:
    ensure_torchvision()
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cnn: nn.Module = models.get_model(config.model, weights=None)
    if not loaded or (config.weights is None and config.pretrained == "random"):
        return cnn
    if config.weights is not None:
        source, state = config.weights, load_weights(config.weights)
    else:
        tags = models.get_model_weights(config.model)
        source = config.pretrained
        if source not in tags.__members__:
            raise WeightsError(f"{config.model}: no weights {source!r}; tags: {', '.join(tags.__members__)}")
        state = from_hub(
            lambda: tags[source].get_state_dict(check_hash=True, weights_only=True),
            config.model, source, "encoder.weights",
        )  # fmt: skip
    classifier = ("fc.", "classifier.")  # which is not used: a file may lack it, or have one of its own
    unused = {name: value for name, value in cnn.state_dict().items() if name.startswith(classifier)}
    used = {name: value for name, value in state.items() if not name.startswith(classifier)}
    load_into(cnn, unused | used, source, config.model)
    return cnn
