"""Putting PEFT modules into the shared base model, and taking them out without a trace."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from autopeft.domain.candidate import Candidate
from autopeft.domain.layout import ModelLayout
from autopeft.domain.results import TaskInfo
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.methods.lora import head_only_config

_TABLES = tuple(key for key, value in vars(nn.Module()).items() if isinstance(value, dict))
"""The dictionaries of a module that change when something is inserted: children, parameters, buffers, hooks."""


def peft_config(candidate: Candidate, layout: ModelLayout, task: TaskInfo) -> Any:
    """The peft configuration of a candidate; without insertions it trains the head alone.

    Raises:
        UserError: where the candidate does not fit the model. ValueError: for more than one insertion, which one
            adapter cannot express, or an unknown method.
    """
    if not candidate.insertions:
        return head_only_config(layout)
    if len(candidate.insertions) > 1:
        raise ValueError(f"one insertion per candidate can be trained, this one has {len(candidate.insertions)}")
    insertion = candidate.insertions[0]
    if insertion.method not in METHODS:
        raise ValueError(f"no PEFT method is called '{insertion.method}'; there are {', '.join(METHODS)}")
    return METHODS[insertion.method].peft_config(insertion, layout, task)


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

    Modules, hooks, attributes and `requires_grad` are kept by reference, which costs nothing. Parameters are copied
    only where a method overwrites them (`keep`), into host memory, so that the copy is no part of a measured peak.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._config = dict(vars(model.config))
        self._modules = [_Attributes(module) for module in model.modules()]
        self._requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._sums = self._checksums()
        self._kept: dict[str, torch.Tensor] = {}

    def keep(self, paths: Iterable[str]) -> None:
        """Copy the weights of these modules, because what is about to be inserted changes them."""
        for path in paths:
            weight = self.model.get_submodule(path).weight
            # On the CPU peft replaces the tensor and leaves its storage alone, so that a reference is enough.
            self._kept[path] = weight.data.cpu() if weight.device.type != "cpu" else weight.data

    def restore(self) -> None:
        """Make the model what it was, whatever was inserted, trained or broken off in between."""
        for module in self._modules:
            module.restore()
        for path, values in self._kept.items():
            weight = self.model.get_submodule(path).weight
            weight.data = values.to(weight.device)
        self._kept = {}
        vars(self.model.config).clear()
        vars(self.model.config).update(self._config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._requires_grad[name])
            parameter.grad = None

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
            return {name: _checksum(tensor.detach()) for name, tensor in named}


def _checksum(tensor: torch.Tensor) -> int:
    patterns = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.contiguous().reshape(-1).view(patterns[tensor.element_size()])
    return sum(int(piece.sum(dtype=torch.int64)) for piece in bits.split(_PIECE))


@dataclass
class Inserted:
    """A base model with a candidate's PEFT modules in it, ready to train."""

    peft_model: PeftModel
    initial: dict[str, torch.Tensor]
    """The adapter's first values on the host, where the exported adapter needs them (PiSSA); else empty."""

    @property
    def module_names(self) -> tuple[str, ...]:
        """Paths of the modules that were replaced by ones with an adapter, as in the untouched model."""
        return module_names(self.peft_model)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters to train: PEFT weights and head."""
        return [parameter for parameter in self.peft_model.parameters() if parameter.requires_grad]

    def head_parameters(self) -> int:
        """How many of them belong to the head."""
        wrappers = [module for module in self.peft_model.modules() if isinstance(module, ModulesToSaveWrapper)]
        return sum(part.numel() for wrapper in wrappers for part in wrapper.parameters() if part.requires_grad)


def module_names(peft_model: PeftModel) -> tuple[str, ...]:
    """Paths, from the base model, of every module that holds an adapter."""
    base = peft_model.get_base_model()
    return tuple(name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))


@contextmanager
def removed_afterwards(untouched: Untouched) -> Iterator[None]:
    """Whatever happens inside, the base model is bit for bit what it was when it ends."""
    try:
        yield
    finally:
        untouched.restore()
        gc.collect()


def insert(untouched: Untouched, config: Any, seed: int) -> Inserted:
    """Put the modules of a peft configuration into the model; initial values are a function of `seed`.

    The seed also starts the stream that dropout draws from afterwards.
    """
    mutates = config.init_lora_weights == "pissa"
    if mutates:
        untouched.keep(tuple(config.target_modules))
    torch.manual_seed(seed)
    peft_model = quietly_wrapped(untouched.model, config)
    initial = {}
    if mutates:
        initial = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in peft_model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        }
    return Inserted(peft_model, initial)


def quietly_wrapped(model: Any, config: Any) -> PeftModel:
    """`peft.get_peft_model` without its remarks on what it decides by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config)
