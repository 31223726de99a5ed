"""An exported model agrees with PyTorch, runs without this package, and is described by a card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cprfl.encoders.base import ImageEncoder, ImageEncoderConfig, freeze
from cprfl.errors import CheckpointError, ConfigError
from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import load
from cprfl.inference import example
from cprfl.inference.deployment import Deployment, as_input
from cprfl.inference.export import FILES, TOLERANCE, export
from cprfl.inference.predictor import Predictor
from cprfl.preparation import prepare
from cprfl.recipe import train
from cprfl.report.model.card import escape
from pipelines.stages.export import export as stage
from tests.every_method import CLASSES, METHODS, facts, text_tower

NAMES = tuple(f"class {number}" for number in range(CLASSES))


class TinyConfig(ImageEncoderConfig):
    def build(self, cache_dir: Path, *, loaded: bool = True) -> ImageEncoder:
        return TinyEncoder(self)


class TinyEncoder(ImageEncoder):
    """Four cells of 64 channels, and their mean."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config, 32, ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
        self.patches = nn.Conv2d(3, 64, 16, 16)

    def encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        grid_BDhw = self.patches(images_B3HW)
        return grid_BDhw, grid_BDhw.mean(dim=(2, 3))

    def blocks(self) -> list[nn.Module]:
        return []


def decisions() -> Decisions:
    spread = np.linspace(0.2, 0.8, CLASSES)
    return Decisions(NAMES, 0.5 + spread, spread - 0.5, spread, "images")


def predictor(method: str, **settings: object) -> Predictor:
    torch.manual_seed(0)
    config = METHODS[method]
    built = config.build(facts(), text_tower() if config.needs_text_tower else None)
    built.bake()
    return Predictor(built, freeze(TinyEncoder(TinyConfig.model_validate(settings))), decisions())


def pictures(count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40 + n, 60, 3), dtype=np.uint8)) for n in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_agrees_as_torchscript(method: str, tmp_path: Path) -> None:
    path = tmp_path / FILES["torchscript"]
    assert export(predictor(method), "torchscript", path, pictures()) <= TOLERANCE
    assert path.exists()


# A temperature of 100 makes the last bit of a feature in half precision a difference that is refused, now and then.
@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "zero shot by softmax"])
def test_every_method_agrees_as_onnx(method: str, tmp_path: Path) -> None:
    assert export(predictor(method), "onnx", tmp_path / FILES["onnx"], pictures()) <= TOLERANCE


@pytest.mark.parametrize("settings", [{}, {"crops": 5}, {"resize": "crop"}, {"pool": 1}])
def test_what_goes_in_and_comes_out_is_what_prediction_does(settings: dict[str, object]) -> None:
    found = predictor("linear probe", **settings)
    deployment, images = Deployment(found), pictures()
    logits_NC, probabilities_NC, found_NC = deployment(as_input(deployment.transform, images))
    assert torch.allclose(probabilities_NC, torch.from_numpy(found.predict(images)), atol=TOLERANCE)
    assert np.array_equal(found_NC.numpy(), found.decisions.found(logits_NC.numpy()))


def test_five_crops_of_every_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.crops"):
        Deployment(predictor("linear probe", crops=5, resize="crop"))


def test_a_graph_that_scores_otherwise_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(path: Path) -> object:
        return lambda inputs: [np.ones((len(inputs), CLASSES), dtype=kind) for kind in (np.float32, np.float32, bool)]

    monkeypatch.setattr("cprfl.inference.export._load_torchscript", other)
    with pytest.raises(CheckpointError, match="otherwise than PyTorch"):
        export(predictor("linear probe"), "torchscript", tmp_path / "model.pt", pictures())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{}, {"crops": 5}, {"resize": "crop"}])
def test_the_example_runs_without_the_package(tmp_path: Path, settings: dict[str, object]) -> None:
    found = predictor("csra", **settings)
    export(found, "onnx", tmp_path / FILES["onnx"], pictures())
    (tmp_path / example.PREPROCESSING).write_text(json.dumps(example.preprocessing(found)))
    (tmp_path / "example.py").write_text(example.program("onnx", found.encoder.transform))
    image = pictures(3)[-1]
    image.save(tmp_path / "photo.png")
    blocked = "import sys, runpy; sys.modules.update(cprfl=None, torch=None); sys.argv = ['example.py', 'photo.png']; "
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{blocked} runpy.run_path('example.py', run_name='__main__')"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = json.loads(done.stdout)
    expected_C = found.predict([image])[0]
    assert [value for value, _ in printed.values()] == pytest.approx(expected_C.tolist(), abs=2 * TOLERANCE)
    assert list(printed) == list(NAMES)
    assert [shown for _, shown in printed.values()] == (expected_C >= found.decisions.threshold_C).tolist()
    session = onnxruntime.InferenceSession(str(tmp_path / FILES["onnx"]))
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(NAMES)
    assert (
        session.get_inputs()[0].shape[1:]
        == json.loads((tmp_path / example.PREPROCESSING).read_text())["input"]["shape"][1:]
    )


def test_a_checkpoint_is_exported_with_a_card(small_config: Path) -> None:
    experiment = load(small_config, ["train.epochs=1"])
    train(experiment, prepare(experiment))
    written = stage(str(experiment.folder), "torchscript", None, Path(experiment.output_dir))
    assert written.difference <= TOLERANCE
    assert all((written.folder / name).stat().st_size for name in written.files)
    card = (written.folder / "MODEL_CARD.md").read_text()
    assert card.startswith("# small\n")
    for section in ("Intended use", "Data", "Training", "Evaluation", "Thresholds and calibration", "Where it fails",
                    "Limits", "Licence and contact"):  # fmt: skip
        assert f"\n## {section}\n" in card
    assert "cprfl evaluate" in card  # nothing is known of it yet


@pytest.mark.parametrize(
    "name", ["<script>", "[a](http://b)", "a|b", "*a*", "_a_", "`a`", "# a", "![x](y)", "a\n\n# b", "&lt;"]
)
def test_a_name_is_no_markdown(name: str) -> None:
    assert not set("<>[]|*_`!\n") & set(escape(name))
    assert "://" not in escape(name)


def test_plain_names_stay_as_they_are() -> None:
    assert escape("fire-bellied toad (Bombina), groß") == "fire-bellied toad (Bombina), groß"
