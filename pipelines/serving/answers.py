"""What the server answers, as its OpenAPI description says it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from pipelines.serving.bodies import IMAGE, IMAGES
from pipelines.serving.champion import Served


class ClassScore(BaseModel):
    """One class of an image."""

    name: str
    probability: float = Field(description="Calibrated, unless calibrated_on of /health is empty.")
    threshold: float = Field(description="Probability from which on the class counts as found.")
    found: bool


class ImageScores(BaseModel):
    """One image: its labels, and every class, the most probable first."""

    found: list[str]
    classes: list[ClassScore]


class Prediction(BaseModel):
    """Scores of a request's images, in their order, and the model that gave them."""

    model: str
    version: str
    images: list[ImageScores]


class Health(BaseModel):
    """Which model answers."""

    ready: bool
    model: str
    version: str
    classes: list[str]
    calibrated_on: str = Field(description="The images on which thresholds were fitted; empty where none were.")
    problem: str = Field(description="Why a newer version does not answer; empty where all is well.")


class Mistake(BaseModel):
    """What is wrong with a request."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Mistake, "description": "No image that can be read."},
    413: {"model": Mistake, "description": "Too many bytes, or images."},
    415: {"model": Mistake, "description": "Another media type than those above."},
    422: {"model": Mistake, "description": "JSON or a form that says something else."},
    503: {"model": Mistake, "description": "Too much to do; try again after the seconds of Retry-After."},
}
_FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "format": "byte", "description": "Base64 of an image file."}
ONE_IMAGE = {"requestBody": {"required": True, "content": {"image/*": {"schema": _FILE}}}}
SOME_IMAGES = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _FILE},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {IMAGES: {"type": "array", "items": _FILE}}}
            },
            "application/json": {
                "schema": {
                    "oneOf": [
                        {"type": "object", "required": [IMAGE], "properties": {IMAGE: _BASE64}},
                        {"type": "object", "required": [IMAGES],
                         "properties": {IMAGES: {"type": "array", "items": _BASE64}}},
                    ]
                }
            },
        },
    }
}  # fmt: skip
INVOCATION = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"dataframe_split": {"columns": ["image"], "data": [["<base64>"]]}},
            },
            "text/csv": {"schema": {"type": "string"}},
        },
    }
}


def prediction(served: Served, probability_NC: np.ndarray) -> Prediction:
    """The answer to ``/predict``."""
    return Prediction(
        model=served.name, version=served.version, images=[_scores(served, row_C) for row_C in probability_NC]
    )


def health(served: Served, problem: str) -> Health:
    """The answer to ``/health``."""
    decisions = served.predictor.decisions
    return Health(
        ready=True, model=served.name, version=served.version, classes=list(decisions.class_names),
        calibrated_on=decisions.source, problem=_without_folders(problem),
    )  # fmt: skip


def _without_folders(text: str) -> str:
    """The text without where the server's files lie; its log has it whole."""
    return re.sub(r"\S*/", "", text)


def _scores(served: Served, probability_C: np.ndarray) -> ImageScores:
    decisions = served.predictor.decisions
    threshold_C = decisions.threshold_C.astype(np.float32)  # as `Decisions.found` compares them
    classes = [
        ClassScore(
            name=decisions.class_names[number], probability=float(probability_C[number]),
            threshold=float(threshold_C[number]), found=bool(probability_C[number] >= threshold_C[number]),
        )
        for number in np.argsort(-probability_C, kind="stable")
    ]  # fmt: skip
    return ImageScores(found=[each.name for each in classes if each.found], classes=classes)
