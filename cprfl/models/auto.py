"""What a person is given who does not know which method to take: members and weights that out-of-fold scores choose."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts, MethodConfig
from cprfl.models.cprfl import CPRFL
from cprfl.models.ensemble import Ensemble
from cprfl.models.gaussian_discriminant import GaussianDiscriminant
from cprfl.models.logistic_regression import LogisticRegression
from cprfl.models.members import SingleMethod
from cprfl.models.zero_shot import ZeroShot

_DROPOUTS = (0.1, 0.3)  # of CPRFLs in turn: the folds tell which of them the data want


class AutoConfig(MethodConfig):
    """An ensemble of CPRFLs, logistic regression, Gaussian discriminant and, where there is one joint space, zero-shot.

    ``num_cprfl``: CPRFLs that start from different weights, of a width that fits the data. ``num_folds``: of the
    training images, on which copies that have not seen them are scored to choose the weights, and how many epochs
    (``train.select``). With the logistic regression among the members the whole is not much worse than that alone.
    """

    name: Literal["auto"] = "auto"
    num_cprfl: PositiveInt = 2
    num_folds: int = Field(default=5, ge=2)

    @property
    def in_closed_form(self) -> bool:
        """See `MethodConfig.in_closed_form`."""
        return True

    @property
    def needs_statistics(self) -> bool:
        """See `MethodConfig.needs_statistics`."""
        return True

    @property
    def folds(self) -> int:
        """See `MethodConfig.folds`."""
        return self.num_folds

    def members(self, facts: Facts) -> list[SingleMethod]:
        """What is weighed."""
        cprfls = [
            CPRFL.Config(standardize=True, center_text=True, dropout=_DROPOUTS[number % len(_DROPOUTS)])
            for number in range(self.num_cprfl)
        ]
        closed: list[SingleMethod] = [LogisticRegression.Config(num_folds=3), GaussianDiscriminant.Config()]
        return [*cprfls, *closed, *([ZeroShot.Config()] if facts.joint_space else [])]

    def build(self, facts: Facts, text_tower: TextTower | None = None) -> Ensemble:
        """The ensemble before it is fitted."""
        config = Ensemble.Config(members=self.members(facts), weights="fitted", num_folds=self.num_folds)
        return Ensemble(config, facts, text_tower)
