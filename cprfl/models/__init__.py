"""Methods: classifiers of encoded images, one file each; `base` says what a method is."""

from cprfl.models.base import Facts, Method, MethodConfig
from cprfl.models.coop import CoOp
from cprfl.models.cprfl import CPRFL
from cprfl.models.ensemble import Ensemble
from cprfl.models.linear_probe import LinearProbe
from cprfl.models.logistic_regression import LogisticRegression
from cprfl.models.zero_shot import ZeroShot

__all__ = [
    "CPRFL",
    "CoOp",
    "Ensemble",
    "Facts",
    "LinearProbe",
    "LogisticRegression",
    "Method",
    "MethodConfig",
    "ZeroShot",
]
