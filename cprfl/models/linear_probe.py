"""The linear probe: a linear classifier on the mean of the grid, the baseline of frozen features."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cprfl.models.base import ModelConfig, ModelInputs, check_features


class LinearProbe(nn.Module):
    """logits = gain (W mean(features) + b).

    Args:
        feature_dim: D, channels of a grid cell.
        num_classes: c.
        standardize: layer applied to the features first.
        gain: under AdamW it acts as a factor of the learning rate, for a probe that is trained beside other models.
    """

    class Config(ModelConfig):
        """Settings of `LinearProbe`; it standardises its input unless told otherwise."""

        name: Literal["linear_probe"] = "linear_probe"
        standardize: bool = True

        def build(self, inputs: ModelInputs) -> LinearProbe:
            """The probe; text embeddings play no part in it."""
            return LinearProbe(inputs.feature_dim, inputs.num_classes, self.standardization(inputs))

    def __init__(
        self, feature_dim: int, num_classes: int, standardize: nn.Module | None = None, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.gain = gain
        self.standardize = standardize or nn.Identity()
        self.linear = nn.Linear(feature_dim, num_classes)

    def forward(self, features_BVD: Tensor) -> Tensor:
        """Logits [B, c] of grid features [B, V, D]."""
        check_features(features_BVD, self.linear.in_features)
        return self.gain * self.linear(self.standardize(features_BVD).mean(dim=1))
