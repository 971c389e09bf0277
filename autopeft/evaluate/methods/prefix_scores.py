"""A prefix in an attention that computes its softmax itself, as DeBERTa's does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autopeft.evaluate.methods.prefix_modules import LayerPrefix

_SOFTMAX = (functional.softmax, torch.softmax, torch.Tensor.softmax)


class ScoresWithPrefix:
    """The forward pass of one attention module, with a prefix in front of its keys.

    While it runs, the module's softmax over scores `[..., queries, keys]` is taken over `[q P_k^T / sqrt(head_dim),
    scores]`. The module goes on with the probabilities of its own keys, which sum to less than 1 now; those of the
    prefix, dropped out as the module drops its own, times P_v are added to the heads' output. That is exactly
    attention over both, whatever the module adds to its own scores: the prefix has content and no position, so no
    relative position either. The scale is the usual one, where DeBERTa divides by sqrt(3 head_dim) for its three sums.
    """

    def __init__(self, module: nn.Module, query: nn.Module, output: nn.Module | None, prefix: LayerPrefix) -> None:
        """`output` is the linear module behind the heads where it lies inside `module`; else None."""
        self._original: Callable[..., Any] = module.forward
        self._prefix = prefix
        self._running: list[_Softmax] = []
        self._inside = output is not None
        query.register_forward_hook(self._see_query)
        if output is not None:
            output.register_forward_pre_hook(self._before_output)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The module's own, with the prefix.

        Raises:
            RuntimeError: where it computed no softmax over scores.
        """
        mode = _Softmax(self._prefix)
        self._running.append(mode)
        try:
            with mode:
                found = self._original(*arguments, **named)
        finally:
            self._running.remove(mode)
        if not mode.joined:
            raise RuntimeError("this attention computes no softmax that a prefix could join")
        if self._inside:
            return found
        first = found[0] if isinstance(found, tuple) else found
        first = first + mode.heads().to(first.dtype)
        return (first, *found[1:]) if isinstance(found, tuple) else first

    def _see_query(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        # The first call is that of the tokens; DeBERTa may project positions by the same matrix afterwards.
        if self._running and self._running[-1].query is None:
            self._running[-1].query = output

    def _before_output(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._running or not self._running[-1].joined:
            return None
        return (arguments[0] + self._running[-1].heads().to(arguments[0].dtype), *arguments[1:])


class _Softmax(TorchFunctionMode):
    """Joins the prefix to the first softmax that is taken, and drops out of its probabilities as the module does."""

    def __init__(self, prefix: LayerPrefix) -> None:
        super().__init__()
        self.query: torch.Tensor | None = None
        """`[batch, queries, heads * head_dim]`"""
        self._prefix = prefix
        self._probabilities: torch.Tensor | None = None
        self._dropped = False

    @property
    def joined(self) -> bool:
        """Whether a softmax was taken."""
        return self._probabilities is not None

    def heads(self) -> torch.Tensor:
        """What the prefix adds to the output of the heads, `[batch, queries, heads * head_dim]`."""
        assert self._probabilities is not None
        values = self._grouped(1).to(self._probabilities.dtype)
        found: torch.Tensor = (self._probabilities @ values).transpose(1, 2).flatten(2)
        return found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SOFTMAX and self.query is not None and self._probabilities is None:
            return self._joined(func, args[0] if args else kwargs["input"], args[1:], kwargs)
        if func is functional.dropout and self._probabilities is not None and not self._dropped:
            self._dropped = True
            others = {name: value for name, value in kwargs.items() if name != "input"}
            self._probabilities = func(self._probabilities, *args[1:], **others)
        return func(*args, **kwargs)

    def _joined(
        self, softmax: Callable[..., Any], scores: torch.Tensor, rest: tuple[Any, ...], named: Mapping[str, Any]
    ) -> torch.Tensor:
        """The probabilities of the module's own keys, in the shape of `scores`."""
        assert self.query is not None
        width = self._prefix.head_dim
        batch, queries, _ = self.query.shape
        query = self.query.view(batch, queries, -1, width).transpose(1, 2)
        before = query @ self._grouped(0).to(query.dtype).transpose(-1, -2) / math.sqrt(width)
        before = before.reshape(*scores.shape[:-1], self._prefix.length).to(scores.dtype)
        others = {name: value for name, value in named.items() if name != "input"}
        both = softmax(torch.cat([before, scores], dim=-1), *rest, **others)
        self._probabilities = both[..., : self._prefix.length].reshape(batch, query.shape[1], queries, -1)
        found: torch.Tensor = both[..., self._prefix.length :]
        return found

    def _grouped(self, which: int) -> torch.Tensor:
        """Keys (0) or values (1) of the prefix, repeated for every head, `[heads, length, head_dim]`."""
        assert self.query is not None
        groups = self.query.shape[-1] // (self._prefix.head_dim * self._prefix.heads)
        found: torch.Tensor = self._prefix()[which].repeat_interleave(groups, dim=0)
        return found
