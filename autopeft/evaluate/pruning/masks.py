"""Trainable masks on heads and FFN units, which show what the task can do without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.evaluate.pruning.shape import ffn_units, head_shape

NAME = "pruning_masks"
"""The child of the base model that holds the masks while they are trained."""


class Mask(nn.Module):
    """One factor per head or unit on the input of the linear module behind them; float32 ones at the start.

    On heads it scales each head's context before the output projection, which is the same as scaling its attention
    probabilities (Light-PEFT, Gu et al., Findings of ACL 2024, section 3.1), and works with fused kernels.
    """

    def __init__(self, count: int, width: int, penalty: float, device: torch.device) -> None:
        """`width` is that of one head, 1 of a unit; `penalty` the weight of the L1 norm in each backward pass."""
        super().__init__()
        self.values = nn.Parameter(torch.ones(count, dtype=torch.float32, device=device))
        self._width = width
        self._penalty = penalty
        self.values.register_hook(self._with_penalty)

    def scale(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook: `[..., count * width]` by the masks, in the input's dtype; all ones change no bit."""
        x = arguments[0]
        factors = self.values.repeat_interleave(self._width)
        return ((x * factors).to(x.dtype), *arguments[1:])

    def _with_penalty(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of `penalty * |values|_1` added to the loss's own, so that reported losses are the task's."""
        return gradient + self._penalty * self.values.detach().sign()


class Masks:
    """The masks of a model's layers, and the hooks by which they act."""

    def __init__(self, model: Any, layout: ModelLayout, *, heads: bool, units: bool, penalty: float) -> None:
        """Put masks on every layer of `model`, in which PEFT modules may be; ask for heads, FFN units or both.

        `penalty` is lambda of `L = L_task + lambda * sum(|a|_1 + |f|_1)`, divided by the backward passes per step.
        """
        self._model = model
        self.heads: dict[int, Mask] = {}
        self.units: dict[int, Mask] = {}
        self._handles: list[RemovableHandle] = []
        for layer in layout.layers:
            shape, width = head_shape(layer, layout), ffn_units(layer)
            if heads:
                assert shape is not None
                count = shape.groups * shape.queries
                self.heads[layer.index] = self._put(layer, Role.ATTENTION_OUTPUT, count, shape.head_dim, penalty)
            if units:
                assert width is not None
                self.units[layer.index] = self._put(layer, Role.FFN_OUT, width, 1, penalty)
        together = {f"heads_{index}": mask for index, mask in self.heads.items()}
        together |= {f"units_{index}": mask for index, mask in self.units.items()}
        # A child of the model, so that its masks are trained, moved and counted with the rest.
        model.add_module(NAME, nn.ModuleDict(together))

    def _put(self, layer: LayerLayout, role: Role, count: int, width: int, penalty: float) -> Mask:
        found = layer.module(role)
        assert found is not None
        module = self._model.get_submodule(found.path)
        mask = Mask(count, width, penalty, next(module.parameters()).device)
        self._handles.append(module.register_forward_pre_hook(mask.scale))
        return mask

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """All that they train."""
        return tuple(mask.values for mask in (*self.heads.values(), *self.units.values()))

    def remove(self) -> None:
        """Take the masks out of the model; their values stay readable."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        vars(self._model)["_modules"].pop(NAME, None)
