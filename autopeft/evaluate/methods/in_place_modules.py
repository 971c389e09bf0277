"""Parameters of a base in half precision, in float32 while they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autopeft.evaluate.arithmetic import autocasting

_SHORT = (torch.bfloat16, torch.float16)


def in_single_precision(model: Any, chosen: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The chosen parameters, those in half precision replaced by float32 ones of the same value wherever they stand.

    The base's own parameters are left as they are and come back with the tables of their modules. A norm gets all of
    its parameters in float32, the frozen ones too, because torch computes no norm with two dtypes. In autocast the
    modules need no more; outside it they compute in autocast and answer in the dtype of the base (`_Mixed`).

    Args:
        model: That `AutoModelFor…` returned.
        chosen: Its parameters to train, by full name.
    """
    wide: dict[int, nn.Parameter] = {
        id(part): nn.Parameter(part.detach().float()) for part in chosen.values() if part.dtype in _SHORT
    }
    if not wide:
        return dict(chosen)
    for module in list(model.modules()):
        own = [(name, part) for name, part in module.named_parameters(recurse=False)]
        touched = [part for _, part in own if id(part) in wide]
        if not touched:
            continue
        for name, part in own:
            beside = part.dtype in _SHORT and all(other.dim() == 1 for _, other in own)
            if id(part) in wide or beside:
                frozen = nn.Parameter(part.detach().float(), requires_grad=False)
                module.register_parameter(name, wide.get(id(part), frozen))
        module.forward = _Mixed(module, touched[0].dtype).forward
    return {name: wide.get(id(part), part) for name, part in chosen.items()}


class _Mixed:
    """The forward pass of a module whose parameters are of two dtypes, or of another one than its neighbours'."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """`dtype` is what the module computed in before."""
        self._module = module
        self._original = module.forward
        self._dtype = dtype

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As it is where autocast is on; else in autocast, and back to the dtype of the base."""
        device = next(self._module.parameters()).device
        if autocasting(device):
            return self._original(*arguments, **named)
        with torch.autocast(device.type, dtype=self._dtype):
            found = self._original(*arguments, **named)
        return found.to(self._dtype) if isinstance(found, torch.Tensor) else found
