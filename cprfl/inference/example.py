"""How an exported model is used without this package: ten lines of Python, and what they do as JSON."""

from __future__ import annotations

import math
from typing import Any

from cprfl.encoders.base import Transform
from cprfl.inference.deployment import INPUT, OUTPUTS, input_transform
from cprfl.inference.export import FILES, Format
from cprfl.inference.predictor import Predictor

PREPROCESSING = "preprocessing.json"
NAMES: dict[Format, str] = {"onnx": "example.py", "torchscript": "example_torchscript.py"}

_HEADER = '''"""What an image shows, by {file}: python {name} IMAGE (needs {needs}; see preprocessing.json)."""
import json, sys, pathlib{imports}
from PIL import Image, ImageOps
here = pathlib.Path(__file__).parent
classes = json.loads((here / "{json}").read_text(encoding="utf-8"))["classes"]
image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
'''
_SQUASH = "image = image.resize(({side}, {side}), Image.Resampling.{resampling})\n"
_CROP = """w, h = (max({side}, round(own * ({side} / min(image.size)))) for own in image.size)
image = image.resize((w, h), Image.Resampling.{resampling})
left, top = round((w - {size}) / 2), round((h - {size}) / 2)
image = image.crop((left, top, left + {size}, top + {size}))
"""
_RUN = {
    "onnx": """x = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / np.float32(255)
logits, probabilities, found = onnxruntime.InferenceSession(str(here / "{file}")).run(None, {{"{input}": x}})
""",
    "torchscript": """x = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None] / 255
logits, probabilities, found = torch.jit.load(str(here / "{file}"))(x)
""",
}
_PRINT = """scores = zip(classes, probabilities[0], found[0])
print(json.dumps({name: [round(float(p), 6), bool(f)] for name, p, f in scores}))
"""
_NEEDS = {"onnx": ("onnxruntime, numpy, Pillow", "\nimport numpy as np, onnxruntime"),
          "torchscript": ("torch, numpy, Pillow", "\nimport numpy as np, torch")}  # fmt: skip


def program(form: Format, transform: Transform) -> str:
    """A program that prints probability and decision of every class for an image file."""
    needs, imports = _NEEDS[form]
    sizes = {"side": _side(transform), "size": input_transform(transform).size,
             "resampling": transform.own.interpolation.upper()}  # fmt: skip
    header = _HEADER.format(file=FILES[form], name=NAMES[form], needs=needs, imports=imports, json=PREPROCESSING)
    resize = (_SQUASH if transform.resize == "squash" else _CROP).format(**sizes)
    return header + resize + _RUN[form].format(file=FILES[form], input=INPUT) + _PRINT


def preprocessing(predictor: Predictor) -> dict[str, Any]:
    """What is done with an image before the exported model sees it, and what comes out, as JSON-like values."""
    transform, decisions = predictor.encoder.transform, predictor.decisions
    size, side = input_transform(transform).size, _side(transform)
    resize: dict[str, Any] = {"do": "resize", "interpolation": transform.own.interpolation, "library": "Pillow"}
    if transform.resize == "squash":
        steps = [resize | {"width": side, "height": side}]
    else:
        steps = [resize | {"shorter_side": side}, {"do": "centre crop", "width": size, "height": size}]
    reading = transform.reading.value_range
    return {
        "input": {"name": INPUT, "type": "float32", "shape": ["n", 3, size, size], "colours": "RGB"},
        "steps": [
            {"do": "turn upright, as the EXIF orientation says"},
            {"do": "convert to RGB of 8 bits, transparency over white", "black_and_white": reading},
            *steps,
            {"do": "divide by 255"},
        ],
        "in_the_graph": {"crops": transform.crops, "statistics": predictor.encoder.statistics},
        "outputs": dict(zip(OUTPUTS, (f"{kind} [n, classes]" for kind in ("float32", "float32", "bool")), strict=True)),
        "classes": list(decisions.class_names),
        "thresholds": [float(value) for value in decisions.threshold_C],
    }  # fmt: skip


def _side(transform: Transform) -> int:
    """To which side, or shorter side, an image is resized."""
    wanted = input_transform(transform)
    return wanted.size if wanted.resize == "squash" else math.floor(wanted.size / wanted.own.crop)
