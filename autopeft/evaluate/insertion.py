"""Putting a candidate's PEFT modules, and the head, into the shared base model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate import composition
from autopeft.evaluate.composition import Composed
from autopeft.evaluate.heads import head_arguments, head_only_config
from autopeft.evaluate.merging import merged, unmergeable
from autopeft.evaluate.methods import METHODS, NO_CALIBRATION, Calibration, Companion, PeftMethod
from autopeft.evaluate.outcomes import named
from autopeft.evaluate.schedule import JOINED
from autopeft.evaluate.untouched import Untouched, removed_afterwards

if TYPE_CHECKING:  # pruning works on what is inserted here
    from autopeft.evaluate.pruning.surgery import Pruned

__all__ = ["Inserted", "Untouched", "insert", "module_names", "peft_config", "removed_afterwards"]


@dataclass
class Inserted:
    """A base model with a candidate's PEFT modules in it, ready to train."""

    model: Any
    """What to call: a `PeftModel`, or the base model itself where the insertions were put into it in place."""
    base: Any
    """The model that `AutoModelFor…` returned."""
    layout: ModelLayout
    insertions: tuple[Insertion, ...]
    composed: Composed | None = None
    """What was put in place; None where `model` is a `PeftModel`."""
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    """The adapter's first values on the host, where the exported adapter needs them (PiSSA); else empty."""
    pruned: Pruned | None = None
    """What was taken out of base and insertions again; None before the pruning step and without one."""
    undecayed: tuple[nn.Parameter, ...] = ()
    """Of what is trained now, what weight decay must leave alone: masks, whose penalty is their own."""
    learner: torch.optim.Optimizer | None = None
    """The last that `optimizer` made, which parameters join that a method brings while it is trained."""

    @property
    def method(self) -> PeftMethod | None:
        """The one method of a `PeftModel`; None for the head alone or a composition."""
        method = METHODS[self.insertions[0].method] if self.insertions and self.composed is None else None
        return method if isinstance(method, PeftMethod) else None

    @property
    def module_names(self) -> tuple[str, ...]:
        """Paths of the modules that a method acts on, as in the untouched model."""
        return module_names(self.base) if self.composed is None else self.composed.modules

    @property
    def saved_exactly(self) -> bool:
        """Whether the saved adapter is the very model that was trained, on a half-precision base too."""
        return not self.initial and (self.method is None or self.method.exact_in_half_precision)

    @property
    def companions(self) -> tuple[Companion, ...]:
        """Of the insertions whose form is decided by data or by training."""
        return tuple(one for one in self.composed.companions if one) if self.composed is not None else ()

    @property
    def grows(self) -> bool:
        """Whether other parameters may train later than now."""
        return any(getattr(METHODS[one.method], "grows", False) for one in self.insertions)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters to train: PEFT weights and head."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def head_parameters(self) -> int:
        """How many of them belong to the head."""
        if self.composed is not None:
            heads = [self.base.get_submodule(path) for path in self.layout.head_paths]
        else:
            heads = [module for module in self.model.modules() if isinstance(module, ModulesToSaveWrapper)]
        return sum(part.numel() for head in heads for part in head.parameters() if part.requires_grad)

    def optimizer(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
        """AdamW over everything trainable, or the optimiser that the method brings."""
        own = None
        if self.method is not None:
            own = self.method.optimizer(self.model, self.insertions[0], learning_rate, weight_decay)
        self.learner = own or self._adamw(learning_rate, weight_decay)
        return self.learner

    def _adamw(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
        spared = {id(parameter) for parameter in self.undecayed}
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in self.trainable() if id(parameter) not in spared]}
        ]
        if self.undecayed:
            groups.append({"params": list(self.undecayed), "weight_decay": 0.0})
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)

    def before_update(self) -> None:
        """Tell the methods that the gradients of a step are complete; they may add to them."""
        for companion in self.companions:
            companion.before_update()

    def after_step(self, step: int) -> bool:
        """Tell the methods that an optimiser step, counted from 1, was done; gradients are still there.

        Returns whether other parameters train from now on; the optimiser then holds these.
        """
        if self.method is not None:
            self.method.after_step(self.model, step)
        grown = [companion.after_step(step) for companion in self.companions]
        if any(grown):
            self._follow(step)
        return any(grown)

    def state(self) -> dict[str, Any]:
        """What the methods keep between the steps beside what they train, as tensors and JSON values."""
        found = {} if self.method is None else {"method": self.method.state(self.model)}
        if not self.companions:
            return found
        places = {id(part): place for place, part in enumerate(self.trainable())}
        groups = [] if self.learner is None else self.learner.param_groups
        return {
            **found,
            "companions": [companion.state() for companion in self.companions],
            "joined": [[one[JOINED], [places[id(part)] for part in one["params"]]] for one in groups if JOINED in one],
        }

    def load(self, state: Mapping[str, Any]) -> bool:
        """Go on from a state; what is trained has its form then, and no values yet.

        Returns whether other parameters train than before; the optimiser then holds these.

        Raises:
            ValueError: where the state is of another candidate.
        """
        own = state.get("companions", [])
        if len(own) != len(self.companions) or ("method" in state) != (self.method is not None):
            raise ValueError("the state is of a training of something else")
        if self.method is not None:
            self.method.load(self.model, state["method"])
        for companion, one in zip(self.companions, own, strict=True):
            companion.load(one)
        if not self.grows:
            return False
        assert self.composed is not None
        self.composed = self.composed.grown(self.model)
        if self.learner is None:
            return True
        known = self.trainable()
        late = [(step, [known[place] for place in places]) for step, places in state["joined"]]
        first, *others = self.learner.param_groups
        placed = {id(part) for group in others for part in group["params"]}
        placed |= {id(part) for _, parts in late for part in parts}
        # In the order of the model, in which those that were there first are still.
        first["params"] = [part for part in known if id(part) not in placed]
        for step, parts in late:
            self.learner.add_param_group({"params": parts, JOINED: step})
        return True

    def _follow(self, step: int) -> None:
        """Take note of parameters that came or went after a step: names to save, groups of the optimiser.

        Those that stay keep their moments. New ones become a group that says when it joined.
        """
        assert self.composed is not None  # others have no companions
        self.composed = self.composed.grown(self.model)
        if self.learner is None:
            return
        known = self.trainable()
        alive, placed = {id(part) for part in known}, set()
        for group in self.learner.param_groups:
            group["params"] = [part for part in group["params"] if id(part) in alive]
            placed |= {id(part) for part in group["params"]}
        for part in [part for part in self.learner.state if id(part) not in alive]:
            del self.learner.state[part]
        if new := [part for part in known if id(part) not in placed]:
            self.learner.add_param_group({"params": new, JOINED: step})

    def merged(self) -> Any:
        """A plain model that predicts the same, the trained weights folded into those of the base.

        Raises:
            ValueError: where a method of the candidate cannot be merged.
        """
        if self.pruned is not None:
            raise ValueError("whether a configuration can say a pruned model's widths is for `evaluate.whole` to find")
        if stuck := unmergeable([one.method for one in self.insertions]):
            raise ValueError(f"{', '.join(stuck)} cannot be merged into the base")
        return merged(self.model, self.companions)


def insert(
    untouched: Untouched,
    candidate: Candidate,
    layout: ModelLayout,
    seed: int,
    *,
    steps: int = 1,
    calibration: Calibration = NO_CALIBRATION,
) -> Inserted:
    """Put a candidate into the model; initial values are a function of `seed`.

    One insertion of a method of peft, or none, is an ordinary `get_peft_model`. Several, or ours, or any that are to be
    pruned, are put into the base model in place. The seed also starts the stream that dropout draws from afterwards.

    Args:
        untouched: Of the model; what must be put back later is kept in it.
        candidate: What to put in.
        layout: Of the model.
        seed: Of initial values and dropout.
        steps: Optimiser steps to come.
        calibration: Rows for initialisations that look at data.

    Raises:
        UserError: where the candidate does not fit the model. ValueError: for an unknown method.
        MethodError: where a method fails; it names the method.
    """
    insertions = candidate.insertions
    known = [_method(insertion) for insertion in insertions]
    if candidate.pruning is not None or len(insertions) > 1 or any(not isinstance(one, PeftMethod) for one in known):
        torch.manual_seed(seed)
        composed = composition.compose(untouched, insertions, layout, steps=steps, calibration=calibration)
        return Inserted(untouched.model, untouched.model, layout, insertions, composed)
    config = peft_config(candidate, layout, steps)
    if not insertions:
        torch.manual_seed(seed)
        return Inserted(quietly_wrapped(untouched.model, config), untouched.model, layout, insertions)
    method, insertion = known[0], insertions[0]
    assert isinstance(method, PeftMethod)
    with named(insertion.method):
        changes = method.changes_base(insertion)
        if changes:
            paths = layout.paths(insertion.layers, insertion.modules)
            untouched.keep(part for path in paths for part in untouched.model.get_submodule(path).parameters())
        torch.manual_seed(seed)
        method.prepare(untouched.model, config, insertion, layout, calibration)
        torch.manual_seed(seed)
        peft_model = quietly_wrapped(untouched.model, config)
        method.started(peft_model, calibration)
    initial = {}
    if method.saved_as_difference(insertion):
        initial = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in peft_model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        }
    return Inserted(peft_model, untouched.model, layout, insertions, None, initial)


def peft_config(candidate: Candidate, layout: ModelLayout, steps: int = 1) -> Any:
    """The peft configuration of a candidate with one insertion of a method of peft, or with none: the head alone.

    Raises:
        UserError: where the candidate does not fit the model. ValueError: for more than one insertion, or a method
            that is unknown or not peft's.
    """
    if not candidate.insertions:
        return head_only_config(layout)
    if len(candidate.insertions) > 1:
        raise ValueError(f"one peft configuration cannot say {len(candidate.insertions)} insertions")
    insertion = candidate.insertions[0]
    method = _method(insertion)
    if not isinstance(method, PeftMethod):
        raise ValueError(f"'{insertion.method}' is not a method of peft")
    config = method.config(method.checked(insertion, layout), layout, steps)
    for name, value in head_arguments(layout).items():
        if value is not None:
            setattr(config, name, value)
    return config


def module_names(base: Any) -> tuple[str, ...]:
    """Paths, from the base model, of every module that holds an adapter of peft's."""
    return tuple(name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))


def quietly_wrapped(model: Any, config: Any) -> PeftModel:
    """`peft.get_peft_model` without its remarks on what it decides by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config)


def _method(insertion: Insertion) -> Any:
    if insertion.method not in METHODS:
        raise ValueError(f"no PEFT method is called '{insertion.method}'; there are {', '.join(METHODS)}")
    return METHODS[insertion.method]
