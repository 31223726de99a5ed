"""Which encoder this machine can use: whose weights are here or to be had."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from cprfl.encoders.clip.library import EMBEDDED, open_clip_module
from cprfl.encoders.weights import load_weights
from cprfl.errors import WeightsError

CLIPS = (("ViT-B-16-quickgelu", "openai"), ("ViT-B-32-quickgelu", "openai"), ("ViT-B-16", "laion2b_s34b_b88k"))
# A weight that the model has and those before it have not.
_CNN_WEIGHTS = {
    "squeezenet1_1": "features.3.squeeze.weight",
    "resnet101": "layer3.22.conv3.weight",
    "resnet50": "layer3.5.conv3.weight",
}
_RANDOM_TEXT = {"name": "random", "dim": 64}
_SECONDS = 3.0  # that Hugging Face has to answer in


@dataclass(frozen=True)
class Encoders:
    """The sections ``encoder`` and ``text_encoder`` of an experiment.

    Attributes:
        encoder: settings of the image encoder.
        text_encoder: settings of the text encoder.
        why: why these, in one line.
    """

    encoder: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    why: str


def encoders_of(weights: Path) -> Encoders:
    """The CNN that a weights file is of.

    Raises:
        WeightsError: where it is of none that is known by its weights' names.
    """
    names = set(load_weights(str(weights)))
    for model, own in _CNN_WEIGHTS.items():
        if own in names:
            cnn = {**_cnn(model), "weights": str(weights.absolute())}
            return Encoders(cnn, _RANDOM_TEXT, f"{model}, from {weights}")
    raise WeightsError(
        f"{weights}: of none of {', '.join(_CNN_WEIGHTS)}; start without it, and set encoder.model and encoder.weights"
    )


def encoders_at_hand() -> Encoders:
    """A CLIP whose weights are in the cache; or a CNN's; or a CLIP to download; or the small one that is trained here.

    With several in the cache it is the first of `CLIPS`. The download is proposed where Hugging Face answers.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    for model, tag in CLIPS:
        if _cached(model, tag):
            return _clip(model, tag, f"CLIP {model}, its weights are here; {device}")
    for model in ("resnet101", "resnet50", "squeezenet1_1"):
        if any(Path(torch.hub.get_dir(), "checkpoints").glob(f"{model}-*")):
            return Encoders(
                {"name": "torchvision", "model": model}, _RANDOM_TEXT, f"{model}, its weights are here; {device}"
            )
    if _reachable("huggingface.co"):
        # Without a GPU the larger patches: a quarter of the cells.
        model, tag = CLIPS[0] if torch.cuda.is_available() else CLIPS[1]
        return _clip(model, tag, f"CLIP {model}, downloaded at the first run; {device}")
    embedded = _clip(
        EMBEDDED, "embedded",
        "no weights are here and huggingface.co does not answer: the embedded CLIP, which has seen drawn shapes only",
    )  # fmt: skip
    return replace(embedded, encoder={**embedded.encoder, "layer": -2})  # 6 x 6 cells; the last layer has 3 x 3


def _cnn(model: str) -> dict[str, Any]:
    """At most 7 x 7 cells; SqueezeNet has 13 x 13, more than three times as many."""
    return {"name": "torchvision", "model": model} | ({"pool": 7} if model == "squeezenet1_1" else {})


def _clip(model: str, tag: str, why: str) -> Encoders:
    chosen = {"name": "open_clip", "model": model, "pretrained": tag}
    return Encoders(chosen, chosen, why)


def _cached(model: str, tag: str) -> bool:
    """Whether the weights are in Hugging Face's cache, under one of the names that open_clip looks for."""
    repository = open_clip_module().get_pretrained_cfg(model, tag).get("hf_hub", "").rstrip("/")
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in names)


def _reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=_SECONDS).close()
    except OSError:
        return False
    return True
