"""Nothing is unpickled: a pickle that runs a command lies in each place that is read, and never runs."""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from cprfl.data.manifest import Manifest
from cprfl.encoders.text import NpzText
from cprfl.encoders.weights import load_weights
from cprfl.errors import TextEmbeddingsError, UserError, WeightsError
from cprfl.experiment import Experiment, load
from cprfl.inference.predictor import Predictor
from cprfl.preparation import prepare
from cprfl.recipe import train
from pipelines.stages.import_published import import_published
from tests.helpers import write_config


class Command:
    """A pickle of it makes whoever unpickles it write a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (f"open({str(self.proof)!r}, 'w').close()",)


def as_pickle(command: Command) -> bytes:
    return pickle.dumps({"state_dict": command})


def as_torch(command: Command) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(2), "more": command}}, file)
    return file.getvalue()


def as_old_torch(command: Command) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": command}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_array(command: Command) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([command], dtype=object), allow_pickle=True)
    return file.getvalue()


def as_arrays(command: Command) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("classes.npy", "embeddings.npy"):
            archive.writestr(name, as_array(command))
    return file.getvalue()


FORMS = [as_pickle, as_torch, as_old_torch, as_array, as_arrays]


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


@pytest.mark.parametrize("form", FORMS)
def test_the_pickles_of_this_test_run_when_somebody_unpickles_them(form: Callable[..., bytes], proof: Path) -> None:
    content = form(Command(proof))
    if form in (as_torch, as_old_torch):
        torch.load(io.BytesIO(content), weights_only=False)
    elif form is as_pickle:
        pickle.loads(content)
    elif form is as_array:
        np.load(io.BytesIO(content), allow_pickle=True)
    else:
        np.load(io.BytesIO(content), allow_pickle=True)["classes"]
    assert proof.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl", ".ckpt", ".safetensors", ".npz"])
def test_weights_are_refused_rather_than_unpickled(
    form: Callable[..., bytes], suffix: str, proof: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(form(Command(proof)))
    with pytest.raises(WeightsError, match="weights"):
        load_weights(str(path))
    assert not proof.exists()


@pytest.mark.parametrize("form", FORMS)
def test_text_embeddings_are_refused_rather_than_unpickled(
    form: Callable[..., bytes], proof: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.npz"
    path.write_bytes(form(Command(proof)))
    with pytest.raises(TextEmbeddingsError):
        NpzText(name="npz", path=str(path), key="embeddings").encode(("a",), tmp_path)
    assert not proof.exists()


@pytest.fixture(scope="module")
def trained(photos: Path, database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a small training, with its caches."""
    root = tmp_path_factory.mktemp("trained")
    write_config(root / "small.yaml", photos, database)
    experiment = load(root / "small.yaml", [])
    train(experiment, prepare(experiment))
    return root


def everything_read(experiment: Experiment) -> None:
    """Read what a training leaves, as the commands do."""
    Manifest.read(experiment.folder / "manifest.parquet")
    train(experiment, prepare(experiment))
    Predictor.load(experiment.folder / "checkpoint", cache_dir=experiment.cache_dir)


@pytest.mark.parametrize("form", [as_pickle, as_torch])
def test_a_file_of_ours_that_became_a_pickle_does_not_run(
    trained: Path, form: Callable[..., bytes], proof: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    experiment = load(root / "small.yaml", [f"output_dir={root / 'outputs'}"])
    files = [path for path in sorted((root / "outputs").rglob("*")) if path.is_file() and path.suffix != ".db"]
    assert len(files) > 5
    for path in files:
        sound = path.read_bytes()
        path.write_bytes(form(Command(proof)))
        with suppress(UserError):  # refused; or made anew, where it can be
            everything_read(experiment)
        assert not proof.exists(), path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound)


def test_published_weights_are_refused_rather_than_unpickled(trained: Path, proof: Path, tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    path.write_bytes(as_torch(Command(proof)))
    with pytest.raises(UserError):
        import_published(str(path), load(trained / "small.yaml", []))
    assert not proof.exists()
