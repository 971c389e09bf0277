"""The modules that hold the keys and values of a prefix."""

from __future__ import annotations

import torch
from torch import nn

INIT_STD = 0.02
"""Standard deviation of the first values of a prefix that is plain parameters."""


class Shared(nn.Module):
    """What the layers of one reparameterised prefix share: `tanh(W_down E + b_down)`, `[length, bottleneck]`.

    First values are those of torch's own modules, as in AutoPEFT's code: E is drawn from N(0, 1).
    """

    def __init__(self, length: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, hidden))
        self.down = nn.Linear(hidden, bottleneck)

    def forward(self) -> torch.Tensor:
        """`[length, bottleneck]`"""
        return torch.tanh(self.down(self.embedding))


class LayerPrefix(nn.Module):
    """The prefix of one layer; the weights are float32 on a base in half precision."""

    def __init__(self, heads: int, length: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.length = length
        self.head_dim = head_dim

    def like(self, parameter: torch.Tensor) -> None:
        """Move to the device of a parameter of the base, in its dtype where that is not a short one."""
        wide = parameter.dtype in (torch.float32, torch.float64)
        self.to(device=parameter.device, dtype=parameter.dtype if wide else torch.float32)


class PlainPrefix(LayerPrefix):
    """Keys and values that are parameters."""

    def __init__(self, heads: int, length: int, head_dim: int) -> None:
        super().__init__(heads, length, head_dim)
        self.keys_values = nn.Parameter(torch.randn(2, heads, length, head_dim) * INIT_STD)

    def forward(self) -> torch.Tensor:
        """Keys and values, `[2, heads, length, head_dim]`."""
        return self.keys_values


class ReparameterisedPrefix(LayerPrefix):
    """Keys and values that a layer's own W_up makes of what the layers share.

    One W_up per layer is a row of blocks of the paper's single one for all layers; a layer that is recomputed for its
    gradient, or attended to alone, needs no other's.
    """

    def __init__(self, heads: int, length: int, head_dim: int, shared: Shared, holds_shared: bool) -> None:
        super().__init__(heads, length, head_dim)
        self.up = nn.Linear(shared.down.out_features, 2 * heads * head_dim)
        if holds_shared:
            self.shared = shared
        self._source = (shared,)  # in a tuple, because a module is registered once, with the first layer

    def forward(self) -> torch.Tensor:
        """Keys and values, `[2, heads, length, head_dim]`."""
        flat: torch.Tensor = self.up(self._source[0]())
        return flat.view(self.length, 2, self.heads, self.head_dim).permute(1, 2, 0, 3)
