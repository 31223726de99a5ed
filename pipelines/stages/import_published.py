"""Weights of the published CPRFL code as one of our checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cprfl.data.manifest import TRAIN
from cprfl.data.temporary import temporary_folder
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.weights import load_into, load_weights
from cprfl.errors import CheckpointError
from cprfl.experiment import Experiment
from cprfl.models import CPRFL, Facts
from cprfl.preparation import CHECKPOINT
from cprfl.reading import read_data
from cprfl.recipe import keep_checkpoint
from cprfl.training.checkpoint import CheckpointInfo, save_checkpoint
from cprfl.training.objective import join_kept_state
from pipelines.lock import alone
from pipelines.stages.places import forget_results
from pipelines.stages.train import record_run
from pipelines.tracking.runs import open_run, training_tag
from pipelines.tracking.store import open_store

_KEY = "imported"  # in the place of a training key
_BACKBONE = "Backbone."
_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def import_published(source: str, experiment: Experiment) -> Path:
    """Turn a published checkpoint into ``outputs/<name>/checkpoint``, ready for `cprfl evaluate` and `cprfl predict`.

    Args:
        source: a torch file of tensors, or safetensors; weights under the published names, also with ``module.``.
        experiment: gives what the weights do not tell: class names, text embeddings, number of heads, the image
            encoder (a torchvision ResNet) and its transform.

    Raises:
        WeightsError: where the file cannot be read without unpickling, or the backbone does not fit the encoder.
        CheckpointError: where it holds other weights, or the experiment is not one of CPRFL on a ResNet.
    """
    config, encoder_config = experiment.model, experiment.encoder
    if not isinstance(config, CPRFL.Config) or not isinstance(encoder_config, CnnEncoder.Config):
        raise CheckpointError("import-published needs model.name=cprfl and encoder.name=torchvision in CONFIG")
    state = load_weights(source)
    manifest = read_data(experiment)
    text, _ = experiment.text_encoder.find_or_embed(manifest.class_names, experiment.cache_dir)
    heads = config.num_heads or 8  # the published number, which the weights do not tell
    model = CPRFL.from_published(state, text.embeddings_CM, heads)
    block: Any = model.interaction.blocks[0]
    prompt: Any = model.prompt
    sizes = {
        "num_heads": heads,
        "dim": model.visual.out_features,
        "head_dim": block.head_dim,
        "mlp_dim": block.mlp[0].out_features,
        "tau": prompt[0].out_features / model.visual.out_features,
    }
    backbone = {name.removeprefix(_BACKBONE): v for name, v in state.items() if name.startswith(_BACKBONE)}
    fresh = encoder_config.model_copy(update={"pretrained": "random"}) if backbone else encoder_config
    encoder = fresh.build(experiment.cache_dir)
    if backbone:
        renamed = {_by_position(name): value for name, value in backbone.items() if not name.startswith("fc.")}
        load_into(encoder.cnn, renamed, source, encoder_config.model)
    values = experiment.model_dump(mode="json")
    values["model"] |= {**sizes, "standardize": False}
    values["train"]["backbone"] = "finetune" if backbone else "frozen"
    info = CheckpointInfo(
        values, _KEY, list(manifest.class_names), encoder.fingerprint(), text.encoder, 0, {},
        holds_tower=bool(backbone),
    )  # fmt: skip
    folder, dim = experiment.folder / CHECKPOINT, model.visual.in_features
    facts = Facts.of_data(manifest.split(TRAIN), text.embeddings_CM, dim, dim)
    weights = join_kept_state(model.state_dict(), encoder.state_dict() if backbone else {})
    tags = {"imported": Path(source).name, **training_tag(_KEY)}
    with (
        alone(experiment, "import-published"),
        open_run(open_store(experiment.output_dir), experiment, tags=tags) as run,
    ):
        with temporary_folder() as aside:
            save_checkpoint(aside, weights, facts, info, None)
            keep_checkpoint(aside, folder)
        forget_results(experiment)  # of the model that was here
        record_run(experiment, run)
    return folder


def _by_position(name: str) -> str:
    """torchvision's ``layer1.0...`` as ``4.0...``, its position in our encoder; names by position stay as they are."""
    stage, _, rest = name.partition(".")
    return f"{_STAGES.index(stage)}.{rest}" if stage in _STAGES else name
