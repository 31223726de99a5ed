"""The methods that stand alone, each of which an ensemble may have as a member. A new one adds a line."""

from __future__ import annotations

from cprfl.models.capnet import CAPNET
from cprfl.models.coop import CoOp
from cprfl.models.cprfl import CPRFL
from cprfl.models.csra import CSRA
from cprfl.models.gaussian_discriminant import GaussianDiscriminant
from cprfl.models.hp_dval import HPDVAL
from cprfl.models.label_free import LabelFree
from cprfl.models.linear_probe import LinearProbe
from cprfl.models.lmpt import LMPT
from cprfl.models.logistic_regression import LogisticRegression
from cprfl.models.ml_gcn import MLGCN
from cprfl.models.query2label import Query2Label
from cprfl.models.zero_shot import ZeroShot

SingleMethod = (
    CPRFL.Config
    | HPDVAL.Config
    | CAPNET.Config
    | LMPT.Config
    | CoOp.Config
    | MLGCN.Config
    | Query2Label.Config
    | CSRA.Config
    | LinearProbe.Config
    | LogisticRegression.Config
    | GaussianDiscriminant.Config
    | LabelFree.Config
    | ZeroShot.Config
)
