"""The base model as it was: what an insertion may change, to go back to and to compare with."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autopeft.domain.candidate import digest_of

_TABLES = tuple(key for key, value in vars(nn.Module()).items() if isinstance(value, dict))
"""The dictionaries of a module that change when something is inserted: children, parameters, buffers, hooks."""


_PIECE = 1 << 22
"""Elements that are summed at a time: a sum in int64 copies them, and whole tensors would take up to 4 times theirs."""


class _Attributes:
    """What one module of the base model was: its attributes by reference, its tables by shallow copy."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(vars(module))
        self._tables = {key: vars(module)[key].copy() for key in _TABLES}

    def restore(self) -> None:
        vars(self._module).clear()
        vars(self._module).update(self._attributes)
        for key, table in self._tables.items():
            # In place, because a hook's handle holds its table.
            self._attributes[key].clear()
            self._attributes[key].update(table)

    def differences(self) -> list[str]:
        """Names of attributes that are not the object that they were, and of tables with other entries."""
        now = vars(self._module)
        found = [key for key in self._attributes.keys() | now.keys() if now.get(key) is not self._attributes.get(key)]
        for key, table in self._tables.items():
            entries = self._attributes[key]
            if entries.keys() != table.keys() or any(entries[name] is not table[name] for name in table):
                found.append(key)
        return [f"{type(self._module).__name__}.{key}" for key in found]


class Untouched:
    """The state of a base model, to go back to and to compare with.

    Modules, hooks, attributes, configurations and `requires_grad` are kept by reference, which costs nothing.
    Parameters are copied only where a method overwrites or trains them (`keep`), into host memory, so that the copy is
    no part of a measured peak.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        self._configs = [(config, dict(vars(config))) for config in configs.values()]
        self._modules = [_Attributes(module) for module in model.modules()]
        self._requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._sums = self._checksums()
        self._base = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._kept: dict[int, tuple[nn.Parameter, torch.Tensor, torch.device]] = {}

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether this very parameter or buffer is one of the base model's."""
        return id(tensor) in self._base

    def keep(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy these parameters of the base, because what is about to be inserted overwrites or trains them."""
        for parameter in parameters:
            if id(parameter) not in self._kept:
                copied = parameter.detach().to("cpu", copy=True)
                self._kept[id(parameter)] = (parameter, copied, parameter.device)

    def restore(self) -> None:
        """Make the model what it was, whatever was inserted, trained or broken off in between."""
        for module in self._modules:
            module.restore()
        for parameter, values, device in self._kept.values():
            parameter.data = values.to(device)
        self._kept = {}
        for config, attributes in self._configs:
            vars(config).clear()
            vars(config).update(attributes)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._requires_grad[name])
            parameter.grad = None

    @property
    def fingerprint(self) -> str:
        """Digest of the tensors of the base model as it was."""
        return digest_of(self._sums)

    def frozen_additions(self, model: Any) -> str:
        """Digest of what is in a model that was made of this one, is not trained, and was not in it before or may have
        been changed: what training depends on and no trained parameter says."""
        with torch.no_grad():
            named = [*model.named_parameters(), *model.named_buffers()]
            return digest_of(
                {
                    name: tensor_sum(tensor.detach())
                    for name, tensor in named
                    if not tensor.requires_grad
                    and tensor.layout is torch.strided
                    and (not self.owns(tensor) or id(tensor) in self._kept)
                }
            )

    def differences(self) -> list[str]:
        """Names of what is not as it was: tensors by their bits, modules by their attributes and tables."""
        now = self._checksums()
        found = [name for name in self._sums.keys() | now.keys() if self._sums.get(name) != now.get(name)]
        for module in self._modules:
            found += module.differences()
        return sorted(found)

    def _checksums(self) -> dict[str, int]:
        """A sum over the bits of each parameter and buffer: one pass over memory, copied in small pieces."""
        with torch.no_grad():
            named = [*self.model.named_parameters(), *self.model.named_buffers()]
            return {name: tensor_sum(tensor.detach()) for name, tensor in named}


def tensor_sum(tensor: torch.Tensor) -> int:
    """A sum over the bits in which every run of 64 elements has a weight of its own, so that it tells orders apart."""
    patterns = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.contiguous().reshape(-1).view(patterns[tensor.element_size()])
    total = 0
    for number, piece in enumerate(bits.split(_PIECE)):
        whole = len(piece) // 64 * 64
        runs = piece[:whole].view(-1, 64).sum(dim=1, dtype=torch.int64)
        weights = torch.arange(1, len(runs) + 1, device=runs.device)
        total += (number + 1) * (int((runs * weights).sum()) + int(piece[whole:].sum(dtype=torch.int64)))
    return total


@contextmanager
def removed_afterwards(untouched: Untouched) -> Iterator[None]:
    """Whatever happens inside, the base model is bit for bit what it was when it ends."""
    try:
        yield
    finally:
        untouched.restore()
        gc.collect()
