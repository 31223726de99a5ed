"""How an image tower moves: not at all, by small adapters beside its blocks, or as a whole.

Adapters are AdaptFormer's (Chen et al., NeurIPS 2022), as CAPNET's development code has them: layer norm, a narrow
bottleneck that starts at zero, and a learnable scale. They hang on the blocks by forward hooks, so that the tower's own
weights keep their names and an adapted tower is the published one plus a small file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cprfl.encoders.base import ImageEncoder
from cprfl.errors import ConfigError, WeightsError

Backbone = Literal["frozen", "adapter", "finetune"]


class Adapter(nn.Module):
    """scale * up(relu(down(norm(x)))) over the channels of tokens [B, N, D] or of a grid [B, D, h, w].

    Args:
        dim: D.
        width: of the bottleneck.
        channel: the dimension that the channels are in.
    """

    def __init__(self, dim: int, width: int, channel: int) -> None:
        super().__init__()
        self.channel = channel
        self.norm, self.down, self.up = nn.LayerNorm(dim), nn.Linear(dim, width), nn.Linear(width, dim)
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.kaiming_normal_(self.down.weight, a=5**0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the block's output; nothing as long as nothing was learned."""
        tokens = x.movedim(self.channel, -1)
        added: Tensor = self.scale * self.up(torch.relu(self.down(self.norm(tokens))))
        return added.movedim(-1, self.channel)


def add_adapters(encoder: ImageEncoder, width: int) -> None:
    """Give every block of ``encoder`` an adapter, drawn from torch's random state.

    Beside a transformer's block it sees what the block sees; a stage changes the shape, so there it sees what the stage
    gives. The hooks hold on to this encoder's adapters: copy an encoder before, not after.

    Raises:
        ConfigError: where the tower has no blocks that adapters could stand beside.
    """
    blocks = encoder.blocks()
    outputs = _outputs(encoder, blocks)
    if not blocks or not all(isinstance(output, Tensor) and output.ndim in (3, 4) for output in outputs):
        raise ConfigError(
            f"train.backbone=adapter: {encoder.config.model_dump()['model']} has no blocks that adapters could stand "
            "beside; take finetune or frozen"
        )
    adapters = []
    for block, output in zip(blocks, outputs, strict=True):
        channel = 1 if output.ndim == 4 and not encoder.channels_last else -1
        adapter = Adapter(output.shape[channel], width, channel).to(encoder.mean.device)

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, adapter: Adapter = adapter) -> Tensor:
            beside = output.ndim == 3 and inputs[0].shape == output.shape
            return output + adapter(inputs[0] if beside else output)

        block.register_forward_hook(add)
        adapters.append(adapter)
    encoder.adapters = nn.ModuleList(adapters)


def _outputs(encoder: ImageEncoder, blocks: Sequence[nn.Module]) -> list[Any]:
    """What each block gives for one image; None for one that is never called."""
    found: list[Any] = [None] * len(blocks)

    def keep(number: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[number] = output

        return hook

    handles = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks)]
    with torch.inference_mode():
        image = torch.zeros(1, 3, encoder.image_size, encoder.image_size, device=encoder.mean.device)
        encoder.eval()(image)
    for handle in handles:
        handle.remove()
    return found


def let_move(encoder: ImageEncoder, backbone: Backbone, adapter_width: int) -> None:
    """Make a frozen encoder's weights, or new adapters beside them, trainable."""
    if backbone == "finetune":
        encoder.requires_grad_(True)
    elif backbone == "adapter":
        add_adapters(encoder, adapter_width)


def moved_state(encoder: ImageEncoder, backbone: Backbone) -> dict[str, Tensor]:
    """What training changes in the tower, by name: all of it, the adapters, or nothing."""
    if backbone == "finetune":
        return encoder.state_dict()
    if encoder.adapters is None or backbone == "frozen":
        return {}
    return encoder.adapters.state_dict()


def load_moved_state(
    encoder: ImageEncoder, backbone: Backbone, adapter_width: int, state: Mapping[str, Tensor], source: str
) -> None:
    """Bring a tower to what a training made of it.

    Raises:
        WeightsError: where the weights do not fit.
    """
    if backbone == "adapter":
        add_adapters(encoder, adapter_width)
    module = encoder.adapters if backbone == "adapter" else encoder
    assert module is not None
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{source}: does not fit the encoder: {str(error).splitlines()[-1].strip()}") from None
    encoder.eval().requires_grad_(False)
