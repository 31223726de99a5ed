"""The colour statistics that open_clip's models were trained with.

They belong to a tag of weights, and follow from the settings alone: a model whose weights come from a file, from a
checkpoint or from a registry must see what it was trained on.
"""

from __future__ import annotations

import json

import numpy as np

from cprfl.data.filesystems import is_remote, local_path
from cprfl.encoders.base import STATISTICS, Statistics
from cprfl.encoders.clip.library import open_clip_module
from cprfl.errors import WeightsError


def own_statistics(model: str, pretrained: str, weights: str | None) -> Statistics:
    """Mean and standard deviation of each colour: those of the tag ``pretrained``.

    For weights from a file where the model has no such tag, they are what all of its tags have.

    Raises:
        WeightsError: where those differ, or the weights' folder says other ones.
    """
    open_clip = open_clip_module()
    tags = open_clip.list_pretrained_tags_by_model(model)
    of_tags: dict[str, Statistics] = {}
    for tag in tags:
        settings = open_clip.get_pretrained_cfg(model, tag)
        mean, std = (settings.get(name) or own for name, own in zip(("mean", "std"), STATISTICS["clip"], strict=True))
        of_tags[tag] = (tuple(mean), tuple(std))
    if weights is None or pretrained in of_tags:
        found = of_tags.get(pretrained, STATISTICS["clip"])
    else:
        choices = {*of_tags.values()} or {STATISTICS["clip"]}
        if len(choices) > 1:
            raise WeightsError(
                f"{weights}: colour statistics of {model} differ; set encoder.pretrained to the tag that the weights "
                f"are of ({', '.join(tags)}), or encoder.statistics"
            )
        found = choices.pop()
    if weights is not None:
        _check_folder(weights, found)
    return found


def _check_folder(weights: str, expected: Statistics) -> None:
    """Compare with what a repository of open_clip's says of its weights."""
    file = local_path(weights) / "open_clip_config.json"
    if is_remote(weights) or not file.is_file():
        return
    try:
        settings = json.loads(file.read_text())["preprocess_cfg"]
        said = (tuple(settings["mean"]), tuple(settings["std"]))
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{file}: no configuration of open_clip's ({type(error).__name__}: {error})") from None
    if np.shape(said) != (2, 3) or not np.allclose(said, expected):
        raise WeightsError(
            f"{file}: colours have mean {list(said[0])} and std {list(said[1])}; set encoder.pretrained to the tag "
            f"that the weights are of, or encoder.statistics: [{list(said[0])}, {list(said[1])}]"
        )
