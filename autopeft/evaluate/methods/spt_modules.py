"""The modules of SPT: a low-rank update, and an update of single entries of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autopeft.evaluate.methods.beside import Beside
from autopeft.evaluate.methods.method import Companion


class LowRank(Beside):
    """`scale * B A`, as LoRA has it: A drawn Kaiming uniform with a = sqrt(5), B zero."""

    def __init__(self, linear: Any, wide_in: int, wide_out: int, *, transposed: bool, rank: int, scale: float) -> None:
        super().__init__(linear, wide_in, wide_out, transposed=transposed)
        self.scale = scale
        first = torch.empty(rank, wide_in)
        nn.init.kaiming_uniform_(first, a=math.sqrt(5))
        self.A = nn.Parameter(first.to(device=self.device, dtype=self.dtype))
        self.B = nn.Parameter(torch.zeros(wide_out, rank, device=self.device, dtype=self.dtype))

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """`scale * B A x`."""
        return self.scale * functional.linear(functional.linear(x, self.A), self.B)

    def dense(self) -> torch.Tensor:
        """`scale * B A`."""
        return self.scale * self.B @ self.A


class Entries(Beside):
    """`D x`, where D is zero but for the chosen entries of the weight, which start at zero as well."""

    def __init__(self, linear: Any, wide_in: int, wide_out: int, *, transposed: bool, entries: torch.Tensor) -> None:
        """`entries` are flat indices into `[out, in]`; they are saved with the adapter."""
        super().__init__(linear, wide_in, wide_out, transposed=transposed)
        short = wide_in * wide_out <= torch.iinfo(torch.int32).max
        self.register_buffer("entries", entries.to(device=self.device, dtype=torch.int32 if short else torch.int64))
        self.values = nn.Parameter(torch.zeros(len(entries), device=self.device, dtype=self.dtype))

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """`D x`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        entries = self.get_buffer("entries").long()
        found: torch.Tensor = _SparseProduct.apply(x, self.values, entries, self.wide_out)
        return found

    def dense(self) -> torch.Tensor:
        """`D`."""
        return _scattered(self.values, self.get_buffer("entries").long(), self.wide_out, self.wide_in)


class _SparseProduct(torch.autograd.Function):
    """`x D^T`, where D `[out, in]` holds the values at the entries; keeps x and no matrix for the backward pass.

    The products are dense, which is exact and in the same order on every run; sparse ones add up in any order on a GPU.
    """

    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, values: torch.Tensor, entries: torch.Tensor, wide_out: int
    ) -> torch.Tensor:
        context.save_for_backward(x, values, entries)
        context.wide_out = wide_out
        return x @ _scattered(values, entries, wide_out, x.shape[-1]).to(x.dtype).T

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        x, values, entries = context.saved_tensors
        wide_out, wide_in = context.wide_out, x.shape[-1]
        outer = gradient.reshape(-1, wide_out).to(values.dtype).T @ x.reshape(-1, wide_in).to(values.dtype)
        back = None
        if context.needs_input_grad[0]:
            back = gradient @ _scattered(values, entries, wide_out, wide_in).to(gradient.dtype)
        return back, outer.view(-1)[entries], None, None


def _scattered(values: torch.Tensor, entries: torch.Tensor, wide_out: int, wide_in: int) -> torch.Tensor:
    flat = torch.zeros(wide_out * wide_in, dtype=values.dtype, device=values.device)
    return flat.index_copy(0, entries, values).view(wide_out, wide_in)


class Allocated(Companion):
    """Where low-rank updates are, and how many single entries are trained elsewhere."""

    def __init__(self, form: Mapping[str, Any], fold: Callable[[], None]) -> None:
        self._form = dict(form)
        self._fold = fold

    def form(self) -> dict[str, Any]:
        """`low_rank`, paths; `entries`, how many by path; which they are is among the tensors."""
        return self._form

    def fold(self) -> None:
        """Add the updates to the weights."""
        self._fold()
