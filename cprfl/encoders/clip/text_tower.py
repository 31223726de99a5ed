"""The text tower of an open_clip model, frozen, for methods whose prompts are learned through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cprfl.encoders.base import weights_digest
from cprfl.encoders.clip.library import open_clip_module
from cprfl.errors import WeightsError


class TextTower(nn.Module):
    """From token embeddings to the joint space of image and text.

    Shapes: C texts, L tokens of width D, E channels of the joint space.

    Args:
        clip: an open_clip model.
        model: its name, which chooses the tokenizer.

    Raises:
        WeightsError: where its text tower has no token embeddings that prompts could take the place of.
    """

    def __init__(self, clip: Any, model: str) -> None:
        super().__init__()
        tower = getattr(clip, "text", clip)  # newer models keep their text tower apart
        if not isinstance(getattr(tower, "token_embedding", None), nn.Embedding):
            raise WeightsError(f"{model}: its text tower takes no learned prompts; choose one of CLIP's own kind")
        if tower is clip:
            clip.visual = None  # which plays no part here
        self.tower = tower.eval().requires_grad_(False)
        self.encode = clip.encode_text if tower is clip else tower
        self.tokenizer = open_clip_module().get_tokenizer(model)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token numbers [C, L], with begin, end and padding."""
        tokens_CL: Tensor = self.tokenizer(list(texts)).to(self.tower.token_embedding.weight.device)
        return tokens_CL

    def embed(self, tokens_CL: Tensor) -> Tensor:
        """Token embeddings [C, L, D]."""
        embeddings_CLD: Tensor = self.tower.token_embedding(tokens_CL)
        return embeddings_CLD

    def forward(self, embeddings_CLD: Tensor, tokens_CL: Tensor) -> Tensor:
        """Texts in the joint space [C, E].

        The embeddings take the place of those of ``tokens_CL``, which still say where a text ends.
        """
        handle = self.tower.token_embedding.register_forward_hook(lambda *_: embeddings_CLD)
        try:
            text_CE: Tensor = self.encode(tokens_CL)
        finally:
            handle.remove()
        return text_CE

    def fingerprint(self) -> str:
        """Changes with every weight."""
        return weights_digest(self.tower)[:16]


def blank_prompts(tower: TextTower, class_names: Sequence[str], num_context: int) -> tuple[Tensor, Tensor]:
    """Tokens [C, L] and embeddings [C, L, D] of ``x x ... NAME.``; the tokens after the begin are the context's place.

    Raises:
        WeightsError: where a name with its context is longer than the tower's texts.
    """
    texts = [" ".join(["x"] * num_context + [f"{name.replace('_', ' ')}."]) for name in class_names]
    tokens_CL = tower.tokens(texts)
    padding = tower.tokens([""])[0, -1]
    longer = [name for name, row in zip(class_names, tokens_CL, strict=True) if row[-1] != padding]
    if longer:
        raise WeightsError(
            f"class {longer[0]!r} with {num_context} tokens of context is longer than the text tower's "
            f"{tokens_CL.shape[1]} tokens; lower model.num_context or shorten the name"
        )
    with torch.no_grad():
        return tokens_CL, tower.embed(tokens_CL)
