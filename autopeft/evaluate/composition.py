"""Several insertions, or our own methods, put into one base model in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.heads import replace_heads
from autopeft.evaluate.methods import METHODS, NO_CALIBRATION, Calibration, Companion, Given, OwnMethod, PeftMethod
from autopeft.evaluate.outcomes import named
from autopeft.evaluate.untouched import Untouched


@dataclass(frozen=True)
class Composed:
    """What was put into a base model in place."""

    modules: tuple[str, ...]
    """Paths, as in the untouched model, of the modules that an insertion acts on."""
    names: tuple[str, ...]
    """Names, in the model as it is now, of every tensor that is new or trained: what an adapter has to hold."""
    configs: tuple[Any, ...]
    """The peft configuration of each insertion, None for ours."""
    companions: tuple[Companion | None, ...] = ()
    """Of each insertion whose form the candidate does not say."""
    others: frozenset[str] = frozenset()
    """Names of all other tensors of the model, which stay as they are."""

    def grown(self, model: Any) -> Composed:
        """The same after parameters came or went."""
        return replace(self, names=tuple(name for name, _ in _tensors(model) if name not in self.others))


def compose(
    untouched: Untouched,
    insertions: Sequence[Insertion],
    layout: ModelLayout,
    *,
    steps: int = 1,
    calibration: Calibration = NO_CALIBRATION,
    configs: Sequence[Any] | None = None,
    forms: Sequence[Mapping[str, Any] | None] | None = None,
) -> Composed:
    """Put the insertions into the model, a trainable copy in the place of its head, and freeze everything else.

    Methods that train parameters of the base come first, because later ones move them; then peft's, each by its own
    tuner; then ours that hook modules, so that they see the output with the update of peft's.

    Args:
        untouched: Of the model.
        insertions: In the order of the candidate; their places in it name them (`i0`, `i1` ...).
        layout: Of the model.
        steps: Optimiser steps to come.
        calibration: Rows for methods that look at data.
        configs: Peft configurations that take the place of those that the methods make: of a saved adapter.
        forms: What was decided of each insertion before it was saved (`Companion.form`).

    Raises:
        UserError: where an insertion does not fit the model, or two claim the same.
    """
    model = untouched.model
    _check_together(insertions, layout)
    model.requires_grad_(False)
    replace_heads(model, layout)
    heads = [part for path in layout.head_paths for part in model.get_submodule(path).parameters()]
    modules: list[str] = []
    trained: list[nn.Parameter] = list(heads)
    made: list[Any] = [None] * len(insertions)
    companions: list[Companion | None] = [None] * len(insertions)
    for index in sorted(range(len(insertions)), key=lambda index: _turn(insertions[index])):
        insertion, method = insertions[index], METHODS[insertions[index].method]
        method.checked(insertion, layout)
        with named(insertion.method):
            if isinstance(method, PeftMethod):
                made[index] = configs[index] if configs else method.config(insertion, layout, steps)
                trained += _tuned(model, made[index], f"i{index}", untouched)
                modules += layout.paths(insertion.layers, insertion.modules)
            else:
                assert isinstance(method, OwnMethod)
                before = list(model.parameters()) if method.in_place else []
                given = Given(steps, calibration, forms[index] if forms else None)
                attached = method.attach(model, layout, insertion, f"i{index}", given)
                companions[index] = attached.companion
                _unload(before, model, untouched)
                own = list(attached.parameters.values())
                untouched.keep(part for part in own if untouched.owns(part))
                trained += own
                modules += attached.modules
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    kept = {id(parameter) for parameter in trained}
    tensors = _tensors(model)
    names = [name for name, tensor in tensors if id(tensor) in kept or not untouched.owns(tensor)]
    others = frozenset(name for name, _ in tensors).difference(names)
    return Composed(tuple(dict.fromkeys(modules)), tuple(names), tuple(made), tuple(companions), others)


def _tensors(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _unload(before: Sequence[nn.Parameter], model: Any, untouched: Untouched) -> None:
    """Take parameters whose place float32 copies took (half-precision bases) off the device until they come back."""
    now = {id(parameter) for parameter in model.parameters()}
    replaced = [parameter for parameter in before if id(parameter) not in now]
    untouched.keep(replaced)
    for parameter in replaced:
        parameter.data = parameter.data.new_empty(0)


def _turn(insertion: Insertion) -> int:
    method = METHODS[insertion.method]
    if isinstance(method, PeftMethod):
        return 1
    return 0 if isinstance(method, OwnMethod) and method.in_place else 2


def _tuned(model: Any, config: Any, name: str, untouched: Untouched) -> list[nn.Parameter]:
    """Put one of peft's methods in; returns what it trains."""
    tuner: Callable[..., Any] = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    before = {id(parameter) for parameter in model.parameters()}
    # Of the tuner before, which this one would take for its own and compare with its configuration.
    vars(model).pop("peft_config", None)
    # peft makes the new adapter the active one in every layer of its kind, which would silence the earlier ones.
    earlier = [(layer, layer._active_adapter) for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = tuner(model, {name: config}, name)
        # As `PeftModel` does: in half precision small steps are rounded away, or AdamW's epsilon is.
        made._cast_adapter_dtype(name)
    for layer, active in earlier:
        layer._active_adapter = active
    new = [part for part in model.parameters() if id(part) not in before and not untouched.owns(part)]
    return [part for part in new if part.requires_grad]


def _check_together(insertions: Sequence[Insertion], layout: ModelLayout) -> None:
    """Spaces are checked when they are bound; a candidate may also come from a file."""
    claimed: dict[str, str] = {}
    for insertion in insertions:
        method = METHODS[insertion.method]
        if method.facts.alone and len(insertions) > 1:
            raise UserError(Problem("insertions", f"{insertion.method} must stand alone", "", "Leave the others out."))
        for place in sorted(method.occupied(insertion, layout)):
            if place in claimed:
                found = f"{claimed[place]} and {insertion.method} both take {place}"
                raise UserError(Problem("insertions", found, "", "Give them different layers or modules."))
            claimed[place] = insertion.method


def load_state(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Copy a saved state into a composed model.

    Raises:
        ValueError: where a name or a shape is not the model's.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, values in state.items():
        if name not in own or own[name].shape != values.shape:
            raise ValueError(f"the adapter's '{name}' {tuple(values.shape)} does not fit this model")
    with torch.no_grad():
        for name, values in state.items():
            own[name].data = values.to(own[name].device)
