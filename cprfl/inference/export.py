"""A trained model as a file that runs without this package: ONNX or TorchScript, checked before it is left there."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn

from cprfl.data.files import write_aside
from cprfl.errors import CheckpointError
from cprfl.inference.deployment import INPUT, OUTPUTS, Deployed, Deployment, as_input
from cprfl.inference.predictor import Predictor

Format = Literal["onnx", "torchscript"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torchscript": "model.pt"}
TOLERANCE = 1e-4
_BATCHES = (1, 3)  # sizes that are checked; traced is another one
_TRACED = 2

Run = Callable[[Tensor], Sequence[np.ndarray]]


def export(predictor: Predictor, form: Format, path: Path, images: Sequence[Image.Image]) -> float:
    """Write a model whose outputs agree with PyTorch's; where they do not, no file is left.

    Args:
        predictor: the model.
        form: of the file.
        path: of the file.
        images: on which it is compared, three at least.

    Returns:
        The largest difference of a probability, or of a logit as a share of the largest one above 1.

    Raises:
        CheckpointError: where the model cannot be written in this form, or what was written scores otherwise.
        ConfigError: see `Deployment`.
    """
    deployment = Deployment(predictor)
    inputs_N3HW = as_input(deployment.transform, images)
    assert len(inputs_N3HW) >= max(_BATCHES)
    with write_aside(path) as aside, torch.no_grad():
        write, load = (_write_onnx, _load_onnx) if form == "onnx" else (_write_torchscript, _load_torchscript)
        try:
            _quietly(write, deployment, inputs_N3HW[:_TRACED], aside, _metadata(predictor))
        except Exception as error:  # both tracers raise their own and torch's, with many lines
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"{type(predictor.method).__name__} with {type(predictor.encoder).__name__}: cannot be written as "
                f"{form} ({reason[:300]}); try the other --format"
            ) from error
        difference = _compare(deployment, load(aside), inputs_N3HW)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"the {form} file scores otherwise than PyTorch, by {difference:.1e} ({TOLERANCE:g} is let pass), so "
                "it was removed; try the other --format"
            )
    return difference


def _metadata(predictor: Predictor) -> dict[str, str]:
    """What stands in the file itself, so that it can be read without another."""
    return {"class_names": json.dumps(list(predictor.class_names), ensure_ascii=False)}


def _write_onnx(deployment: Deployment, inputs_N3HW: Tensor, path: Path, metadata: dict[str, str]) -> None:
    # Two or three images: a method may choose its cheapest way by how many there are, and all ways give the same.
    dynamic = {"images_N3HW": {0: torch.export.Dim("n", min=_TRACED, max=_TRACED + 1)}}
    program = torch.export.export(deployment, (inputs_N3HW,), dynamic_shapes=dynamic, strict=True)
    written = torch.onnx.export(
        program, input_names=[INPUT], output_names=list(OUTPUTS), dynamo=True, external_data=False, verbose=False
    )
    assert written is not None
    model = written.model_proto
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_torchscript(deployment: Deployment, inputs_N3HW: Tensor, path: Path, metadata: dict[str, str]) -> None:
    whole = copy.deepcopy(deployment)
    method = torch.jit.trace(deployment.method, tuple(deployment.encoder(inputs_N3HW[:1])), check_trace=False)
    whole.method = torch.jit.script(_EachImage(method))  # type: ignore[assignment]
    traced = torch.jit.trace(whole, (inputs_N3HW,), check_trace=False)
    torch.jit.save(torch.jit.freeze(traced), str(path), _extra_files=metadata)


class _EachImage(nn.Module):
    """Scores one image after the other: a trace keeps the number of images where a method asks for it."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, grid_NVD: Tensor, global_NE: Tensor) -> Tensor:
        """Logits [N, C]."""
        found: list[Tensor] = []
        for number in range(grid_NVD.shape[0]):
            found.append(self.method(grid_NVD[number : number + 1], global_NE[number : number + 1]))
        return torch.cat(found)


def _load_onnx(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(inputs_N3HW: Tensor) -> Sequence[np.ndarray]:
        found: Sequence[np.ndarray] = session.run(list(OUTPUTS), {INPUT: inputs_N3HW.numpy()})
        return found

    return run


def _load_torchscript(path: Path) -> Run:
    loaded: Any = torch.jit.load(str(path))
    return lambda inputs_N3HW: [each.numpy() for each in loaded(inputs_N3HW)]


def _compare(deployment: Deployment, run: Run, inputs_N3HW: Tensor) -> float:
    """The largest difference over batches of several sizes; infinite where a decision that is not close differs."""
    worst = 0.0
    for count in (*_BATCHES, len(inputs_N3HW)):
        for start in range(0, len(inputs_N3HW), count):
            batch_N3HW = inputs_N3HW[start : start + count]
            worst = max(worst, _difference(deployment(batch_N3HW), run(batch_N3HW), deployment.threshold_C))
    return worst


def _difference(wanted: Deployed, found: Sequence[np.ndarray], threshold_C: Tensor) -> float:
    logits_NC, probabilities_NC, found_NC = (torch.from_numpy(np.asarray(values)) for values in found)
    close_NC = (wanted.probabilities_NC - threshold_C).abs() <= TOLERANCE
    if not torch.equal(found_NC | close_NC, wanted.found_NC | close_NC):
        return float("inf")
    scale = wanted.logits_NC.abs().max().clamp(min=1)
    of_logits = (logits_NC - wanted.logits_NC).abs().max() / scale
    of_probabilities = (probabilities_NC - wanted.probabilities_NC).abs().max()
    return float(torch.maximum(of_logits, of_probabilities))


def _quietly(write: Callable[..., None], *arguments: Any) -> None:
    """Without the fast path of torch's transformers, which has no graph, and without what exporters tell developers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            write(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
