"""An image encoder and a classifier trained together, as in the published protocol."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from cprfl.encoders.image import ImageEncoder

_ENCODER, _HEAD = "encoder.", "head."


class FineTuned(nn.Module):
    """``head(encoder(images).grid)``, with gradients for both.

    Args:
        encoder: its weights are unfrozen.
        head: a model of grid features.
        batch_norm: ``train`` updates the running statistics, ``frozen`` keeps them and normalises by them.
    """

    def __init__(self, encoder: ImageEncoder, head: nn.Module, batch_norm: Literal["train", "frozen"]) -> None:
        super().__init__()
        self.encoder, self.head = encoder.requires_grad_(True), head
        self.batch_norm = batch_norm

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits [B, c] of images, uint8 or in [0, 1]."""
        logits_BC: Tensor = self.head(self.encoder(images_B3HW).grid_BVD)
        return logits_BC


def split_weights(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The head's and the encoder's part of a `FineTuned`'s weights, under their own names."""
    head = {name.removeprefix(_HEAD): value for name, value in weights.items() if name.startswith(_HEAD)}
    encoder = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
    return head, encoder


def grid_channels(encoder: ImageEncoder) -> int:
    """Channels of the encoder's grid, found by encoding a blank image."""
    with torch.inference_mode():
        blank = torch.zeros(1, 3, encoder.image_size, encoder.image_size)
        return encoder.eval()(blank).grid_BVD.shape[-1]
