"""Trained modules beside linear ones: an update of the weight that acts by a forward hook and can be folded in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autopeft.evaluate.arithmetic import autocasting


class Beside(nn.Module):
    """An update of one linear module or `Conv1D`; a subclass says what it is.

    The parameters are float32 on a base in half precision, and the sum is made in the dtype of the base.
    """

    def __init__(self, linear: Any, wide_in: int, wide_out: int, *, transposed: bool) -> None:
        """`linear` is the module of the base; `transposed` says that it holds its weight as `[in, out]`."""
        super().__init__()
        self.wide_in, self.wide_out = wide_in, wide_out
        self.transposed = transposed
        weight = next(linear.parameters())
        wide = weight.dtype in (torch.float32, torch.float64)
        self.dtype: torch.dtype = weight.dtype if wide else torch.float32
        self.device: torch.device = weight.device
        self._handle = linear.register_forward_hook(self.beside)

    @abstractmethod
    def update(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in] -> [..., out]`: what is added to the output of the linear module."""

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """`[out, in]`: what is added to its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`update`, in the dtype of the parameters or of autocast."""
        return self.update(x if autocasting(x.device) else x.to(self.dtype))

    # A method, so that a deep copy of the model has hooks of its own modules.
    def beside(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Forward hook of the linear module."""
        return output + self(arguments[0]).to(output.dtype)

    def fold(self, linear: Any) -> None:
        """Add the update to the weight and stop acting; the old weight stays as it is, for whoever has it.

        Raises:
            ValueError: where the weight is held in 4 or 8 bits.
        """
        weight = linear.weight
        if not weight.is_floating_point():
            raise ValueError("an update cannot be folded into weights in 4 or 8 bits")
        with torch.no_grad():
            update = self.dense().T if self.transposed else self.dense()
            linear.weight = nn.Parameter((weight.to(self.dtype) + update).to(weight.dtype), requires_grad=False)
        self._handle.remove()


def folding(model: Any, modules: Mapping[str, Beside], blocks: Iterable[nn.Module], name: str) -> Callable[[], None]:
    """What folds these updates, by path of their linear modules, and takes the child `name` out of the blocks."""
    holders = list(blocks)

    def fold() -> None:
        for path, beside in modules.items():
            beside.fold(model.get_submodule(path))
        for block in holders:
            delattr(block, name)

    return fold
