"""Optimisers by name, as far as their memory goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from autopeft.evaluate.memory.setup import Setup

EIGHT_BIT_BLOCK = 256
"""Values that share a float32 scale in bitsandbytes' optimisers."""
EIGHT_BIT_FROM = 4096
"""Tensors of fewer elements keep their moments in float32 there (`min_8bit_size`)."""


def optimiser_of(parameters: Iterable[nn.Parameter], setup: Setup) -> torch.optim.Optimizer:
    """The optimiser of a setup over these parameters; learning rate and decay mean nothing.

    Raises:
        ValueError: for a name that is none of `setup.OPTIMISERS`.
    """
    trained = list(parameters)
    if setup.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    if setup.optimizer == "adamw-8bit":
        return AdamW8bit(trained)
    if setup.optimizer in ("sgd", "sgd-momentum"):
        return torch.optim.SGD(trained, lr=1e-3, momentum=0.9 if setup.optimizer == "sgd-momentum" else 0.0)
    raise ValueError(f"no optimiser is called '{setup.optimizer}'")


class AdamW8bit(torch.optim.Optimizer):
    """What bitsandbytes' AdamW8bit holds, and nothing of what it computes: its kernels work in place.

    Two moments in one byte per value each, and a float32 scale for every 256 values of each (Dettmers et al., ICLR
    2022, arXiv:2110.02861, section 2.1); two maps of 256 float32 values for all tensors together.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 1e-3})
        self._maps: tuple[torch.Tensor, ...] = ()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state of parameters that have a gradient and no state yet."""
        for group in self.param_groups:
            for part in group["params"]:
                if part.grad is not None and not self.state[part]:
                    self.state[part] = self._state_of(part)

    def _state_of(self, part: torch.Tensor) -> dict[str, torch.Tensor]:
        if part.numel() < EIGHT_BIT_FROM:
            return {name: torch.empty_like(part, dtype=torch.float32) for name in ("state1", "state2")}
        if not self._maps:
            self._maps = tuple(torch.empty(256, dtype=torch.float32, device=part.device) for _ in range(2))
        scales = -(-part.numel() // EIGHT_BIT_BLOCK)
        found = {name: torch.empty_like(part, dtype=torch.uint8) for name in ("state1", "state2")}
        found |= {name: part.new_empty(scales, dtype=torch.float32) for name in ("absmax1", "absmax2")}
        return found | {"qmap1": self._maps[0], "qmap2": self._maps[1]}
