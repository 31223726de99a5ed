"""open_clip itself, imported late and with our model configuration registered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cprfl.torchvision_cpu import ensure_torchvision

EMBEDDED = "cprfl-embedded"  # our model configuration of open_clip; its weights are trained where they are needed
ARCHITECTURE = Path(__file__).with_name(f"{EMBEDDED}.json")


def open_clip_module() -> Any:
    """open_clip, which takes seconds to import, with the embedded model among its models."""
    ensure_torchvision()
    import open_clip

    if EMBEDDED not in open_clip.list_models():
        open_clip.add_model_config(ARCHITECTURE)
    return open_clip


def quietly(create: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call open_clip without its messages on the root logger.

    It warns of random weights, which are loaded later, and repeats what its exceptions say.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return create(*arguments, **options)
    finally:
        logging.disable(disabled)
