"""Methods: classifiers of encoded images, one file each; `base` says what a method is."""

from typing import Annotated

from pydantic import Field

from cprfl.models.auto import AutoConfig
from cprfl.models.base import Facts, Method, MethodConfig
from cprfl.models.capnet import CAPNET
from cprfl.models.coop import CoOp
from cprfl.models.cprfl import CPRFL
from cprfl.models.csra import CSRA
from cprfl.models.ensemble import Ensemble
from cprfl.models.gaussian_discriminant import GaussianDiscriminant
from cprfl.models.hp_dval import HPDVAL
from cprfl.models.label_free import LabelFree
from cprfl.models.linear_probe import LinearProbe
from cprfl.models.lmpt import LMPT
from cprfl.models.logistic_regression import LogisticRegression
from cprfl.models.members import SingleMethod
from cprfl.models.ml_gcn import MLGCN
from cprfl.models.query2label import Query2Label
from cprfl.models.zero_shot import ZeroShot

AnyMethod = Annotated[SingleMethod | Ensemble.Config | AutoConfig, Field(discriminator="name")]

__all__ = [
    "CAPNET",
    "CPRFL",
    "CSRA",
    "HPDVAL",
    "LMPT",
    "MLGCN",
    "AnyMethod",
    "AutoConfig",
    "CoOp",
    "Ensemble",
    "Facts",
    "GaussianDiscriminant",
    "LabelFree",
    "LinearProbe",
    "LogisticRegression",
    "Method",
    "MethodConfig",
    "Query2Label",
    "ZeroShot",
]
