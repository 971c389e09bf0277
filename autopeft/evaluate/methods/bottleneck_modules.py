"""The module of the bottleneck adapters, and the forward hooks by which it acts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopeft.evaluate.arithmetic import autocasting

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class Bottleneck(nn.Module):
    """`scale * (W_up f(W_down x + b_down) + b_up)`, which is 0 for every x until it is trained.

    W_down is drawn as LoRA's A and by He et al.'s code (Kaiming uniform, a = sqrt(5)), the rest is 0. The weights are
    float32 on a base in half precision, and the sums are made in the dtype of the base.
    """

    def __init__(self, wide_in: int, wide_out: int, size: int, scale: float, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(wide_in, size)
        self.up = nn.Linear(size, wide_out)
        self.scale = scale
        self.activation = activation
        self._taken: dict[int, torch.Tensor] = {}
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for part in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(part)

    def like(self, parameter: torch.Tensor) -> None:
        """Move to the device of a parameter of the base, in its dtype where that is not a short one."""
        wide = parameter.dtype in (torch.float32, torch.float64)
        self.to(device=parameter.device, dtype=parameter.dtype if wide else torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., wide_in] -> [..., wide_out]`, in the dtype of the weights or of autocast."""
        if not autocasting(x.device):
            x = x.to(self.down.weight.dtype)
        inner = _ACTIVATIONS[self.activation](self.down(x))
        found: torch.Tensor = self.scale * self.up(inner)
        return found

    # Hooks are methods, so that a deep copy of the model has hooks of its own modules.

    def behind(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Forward hook of a serial adapter."""
        return output + self(output).to(output.dtype)

    def take(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Forward pre-hook of a parallel adapter at the entrance of its sublayer.

        The input is kept until the sublayer's end and no longer, one per thread. Gradient checkpointing, which runs
        the sublayer again, comes by here again.
        """
        self._taken[threading.get_ident()] = arguments[0]

    def beside(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Forward hook of a parallel adapter at the end of its sublayer."""
        # Taken out before anything is computed: recomputation may stop at the last tensor that it needs.
        x = self._taken.pop(threading.get_ident())
        return output + self(x).to(output.dtype)
