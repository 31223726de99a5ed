"""Makes torchvision importable beside a CPU-only torch.

The published torchvision wheel is built against CUDA torch. Beside a CPU build of torch its compiled operators do not
load, and ``import torchvision`` fails with "operator torchvision::nms does not exist", and open_clip and timm with it.
Nothing here needs those operators, so their schemas are declared (with a CPU ``nms`` in plain torch) and the import is
made again. Where torchvision imports by itself, nothing is changed.
"""

from __future__ import annotations

import functools
import sys

import torch

_libraries: list[torch.library.Library] = []  # a Library unregisters its operators when it is collected


@functools.cache
def ensure_torchvision() -> None:
    """Import torchvision, with a stand-in for its compiled operators if, and only if, they do not load.

    Call it before the first import of torchvision, open_clip or timm in every process.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        import torchvision.ops.boxes

        torchvision.ops.boxes._assert_has_ops = lambda: None


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    _libraries.append(library)


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression of boxes [n, 4] (x1, y1, x2, y2): indices kept, best score first."""
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(best)
        low, high = torch.maximum(dets[best, :2], dets[order, :2]), torch.minimum(dets[best, 2:], dets[order, 2:])
        intersection = (high - low).clamp(min=0).prod(dim=1)
        order = order[intersection / (area[best] + area[order] - intersection) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long)
