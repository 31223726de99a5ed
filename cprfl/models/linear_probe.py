"""The linear probe: a linear classifier on the mean of the grid, the baseline of frozen features."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor, nn

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts, Method, StandardizingConfig, check_features


class LinearProbe(Method):
    """logits = gain (W mean(features) + b)."""

    class Config(StandardizingConfig):
        """It standardises its input unless told otherwise.

        ``gain`` acts as a factor of the learning rate under AdamW, for a probe that is trained beside other models.
        """

        name: Literal["linear_probe"] = "linear_probe"
        standardize: bool = True
        gain: PositiveFloat = 1.0

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> LinearProbe:
            """The probe; text embeddings play no part in it."""
            return LinearProbe(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.gain = config.gain
        self.standardize = config.standardization(facts)
        self.linear = nn.Linear(facts.grid_dim, facts.num_classes)

    def forward(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """Logits [B, C] of grid features [B, V, D]; the summary is not used."""
        check_features(grid_BVD, self.linear.in_features)
        return self.gain * self.linear(self.standardize(grid_BVD).mean(dim=1))
