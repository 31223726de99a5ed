"""A loss's settings are the parameters of what makes it, with their bounds and defaults: they stand nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_type_hints

import numpy as np
from pydantic import create_model
from torch import nn

from cprfl.config import Config

_GIVEN = ("class_counts", "num_images")  # by the data set
_FIXED = ("self", "return", "reduction")  # training minimises means


class LossConfig(Config):
    """Settings of one loss; `config_of` makes the subclasses."""

    name: str
    make_loss: ClassVar[Callable[..., nn.Module]]

    def build(self, class_counts: np.ndarray, num_images: int) -> nn.Module:
        """The loss of (logits, targets), both [..., c], for a training split of so many images.

        A loss that weighs by class counts takes a class without training images as if it had one.
        """
        make = type(self).make_loss
        known = {"class_counts": class_counts, "num_images": num_images}
        wanted = {name: value for name, value in known.items() if name in inspect.signature(make).parameters}
        return make(**wanted, **self.model_dump(exclude={"name"}))


def config_of(name: str, make: Callable[..., nn.Module]) -> type[LossConfig]:
    """The configuration whose ``name`` in a YAML chooses this loss, with a field for each of its settings."""
    signed: Any = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    types = get_type_hints(signed, include_extras=True)
    chosen: Any = (Literal[name], name)
    fields: dict[str, Any] = {
        parameter: (types[parameter], found.default)
        for parameter, found in inspect.signature(make).parameters.items()
        if parameter not in _GIVEN + _FIXED
    }
    made = create_model(f"{name}_config", __base__=LossConfig, __doc__=make.__doc__, name=chosen, **fields)
    made.make_loss = staticmethod(make)
    return made
