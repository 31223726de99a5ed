"""timm itself, imported late: its models by name, with weights from its hub, a file or a folder."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Any

import numpy as np
import torch

from cprfl.data.filesystems import is_remote, local_path
from cprfl.encoders.weights import load_into, load_weights
from cprfl.errors import WeightsError
from cprfl.torchvision_cpu import ensure_torchvision


def timm_module() -> Any:
    """timm, which takes seconds to import."""
    ensure_torchvision()
    import timm

    return timm


def check_name(full_name: str, *, needs_weights: bool) -> None:
    """See whether timm has a model.

    Args:
        full_name: with or without the tag of its weights.
        needs_weights: whether timm has to have weights of it.

    Raises:
        WeightsError: where it has not, with the nearest names or the tags that there are.
    """
    timm = timm_module()
    name, _, tag = full_name.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists them"
        raise WeightsError(f"{full_name!r}: no such model of timm {timm.__version__}; {hint}")
    published = [listed.partition(".") for listed in timm.list_pretrained(f"{name}*")]
    tags = [of for listed, _, of in published if listed == name]
    if tag and tag not in tags:
        raise WeightsError(f"{name}: no pretrained tag {tag!r}; tags: {', '.join(tags) or 'none'}")
    if needs_weights and not tags:
        raise WeightsError(f"{name}: no weights of it are published; give encoder.weights, or pretrained: random")


def new_model(
    full_name: str, image_size: int | None, *, pretrained: bool = False, with_classifier: bool = False
) -> Any:
    """A model of timm's.

    Args:
        full_name: with or without the tag of its weights.
        image_size: side of its input, for models that are built for one size; position embeddings are interpolated.
        pretrained: whether timm gives it its weights.
        with_classifier: whether it keeps what only classifies.

    Raises:
        WeightsError: where it can only be built for its own size, or that is no square.
    """
    timm = timm_module()
    options: dict[str, Any] = {} if with_classifier else {"num_classes": 0}
    known = timm.models.get_pretrained_cfg(full_name)
    _, height, width = known.input_size
    if image_size is None and height != width:
        raise WeightsError(f"{full_name}: takes images of {height} x {width}; set encoder.image_size")
    if image_size is not None and known.fixed_input_size:
        options["img_size"] = image_size
    try:
        return timm.create_model(full_name, pretrained=pretrained, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise WeightsError(f"{full_name}: takes images of one size only; leave encoder.image_size out") from None


def load_file(model: Any, path: str, full_name: str, image_size: int | None) -> None:
    """Load weights in timm's own form or one that it converts, with or without a classifier.

    Args:
        model: without one.
        path: of the file, or of a local folder with it.
        full_name: the model's name.
        image_size: what it was built for.

    Raises:
        WeightsError: where they cannot be read, or do not fit.
    """
    state = load_weights(path)
    with torch.device("meta"):
        whole = new_model(full_name, image_size, with_classifier=True).state_dict()
    used = model.state_dict().keys()
    classifier = {name: value for name, value in whole.items() if name not in used}
    if state.keys() - classifier.keys() == used:
        state = classifier | state  # some converters take weights without a classifier for those of other code
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, model)
        except Exception as error:  # the converters raise whatever another model's weights lead them to
            raise WeightsError(f"{path}: does not fit {full_name}: {type(error).__name__}: {error}") from None
    load_into(model, {name: value for name, value in state.items() if name not in classifier}, path, full_name)


def check_folder(path: str, full_name: str, model: Any) -> dict[str, Any]:
    """What the folder of a Hugging Face repository says of its weights beyond what ``model`` says of itself.

    Args:
        path: of the weights; nothing is said of a file, or by a folder without ``config.json``.
        full_name: the model's name.
        model: the model that gets the weights.

    Returns:
        Settings of the encoder, by name, that would make it what the folder describes.

    Raises:
        WeightsError: where they are weights of another model.
    """
    file = local_path(path) / "config.json"
    if is_remote(path) or not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text())
        architecture, arguments = settings["architecture"], dict(settings.get("model_args") or {})
        said = timm_module().data.resolve_data_config(pretrained_cfg=settings.get("pretrained_cfg", settings))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{file}: no configuration of timm's ({type(error).__name__}: {error}); take the model's repository under "
            "https://huggingface.co/timm"
        ) from None
    if architecture != full_name.partition(".")[0]:
        raise WeightsError(f"{file}: weights of {architecture}, not of {full_name}")
    size = arguments.pop("img_size", said["input_size"][-1])
    unknown = {name: value for name, value in arguments.items() if name != "num_classes"}
    if unknown:
        raise WeightsError(
            f"{file}: the model was built with arguments of its own ({unknown}); they are not known here"
        )
    own = timm_module().data.resolve_model_data_config(model)
    differing: dict[str, Any] = {}
    if size != own["input_size"][-1]:
        differing["image_size"] = size
    if not np.allclose([said["mean"], said["std"]], [own["mean"], own["std"]]):
        differing["statistics"] = [list(said["mean"]), list(said["std"])]
    return differing
