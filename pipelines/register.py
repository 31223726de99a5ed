"""Stage 4: the trained model as a version in MLflow's registry, complete with its encoder."""

from __future__ import annotations

import io
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cprfl
from cprfl import serving
from cprfl.data.images import open_image
from cprfl.data.manifest import TEST
from cprfl.experiment import Experiment
from cprfl.training.checkpoint import ENCODER
from pipelines.preprocess import Prepared

_REQUIREMENTS = (
    "torch", "torchvision", "open_clip_torch", "timm", "safetensors", "numpy", "pillow", "pyarrow", "pycocotools",
    "scikit-learn", "scipy", "pydantic", "omegaconf", "pandas", "xxhash", "mlflow",
)  # fmt: skip


def register(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> str:
    """Log the model in the active MLflow run and register it under the experiment's name, without an alias.

    Returns:
        The version.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema
    from safetensors.torch import save_file

    test = prepared.read_manifest().split(TEST)
    picture = io.BytesIO()
    open_image(test.uris[0]).save(picture, format="PNG")
    class_names = test.class_names
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]), outputs=Schema([ColSpec("float", name) for name in class_names])
    )
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(checkpoint, Path(folder) / serving.CHECKPOINT)
        if not (checkpoint / ENCODER).exists():  # a fine-tuned encoder's weights are in the checkpoint
            encoder = experiment.encoder.build(experiment.cache_dir)
            weights = {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
            save_file(weights, Path(folder) / ENCODER)
        logged: Any = mlflow.pyfunc.log_model(
            name="model",
            loader_module=serving.__name__,
            data_path=folder,
            code_paths=[str(Path(cprfl.__file__).parent)],
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            signature=signature,
            input_example=pd.DataFrame({"image": [picture.getvalue()]}),
            registered_model_name=experiment.name,
        )
    return str(logged.registered_model_version)
