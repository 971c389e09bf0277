"""The shape of every PEFT method: its facts and rules, and how it comes into a live model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout, ModuleLayout, Role
from autopeft.domain.method import MethodFacts
from autopeft.evaluate.methods.checks import problems_of

if TYPE_CHECKING:  # binding a space needs the rules only, and no torch
    import torch
    from torch import nn


@dataclass(frozen=True)
class Calibration:
    """Training rows for an initialisation that looks at data."""

    batches: Sequence[Mapping[str, torch.Tensor]]
    """Arguments of the model's forward pass, labels included, on the model's device."""
    autocast: Callable[[], AbstractContextManager[Any]]
    """The arithmetic that training computes in."""


NO_CALIBRATION = Calibration((), nullcontext)


@dataclass(frozen=True)
class Given:
    """What a method of ours may need to know when it is put in, beside the insertion."""

    steps: int = 1
    """Optimiser steps of the training to come."""
    calibration: Calibration = NO_CALIBRATION
    form: Mapping[str, Any] | None = None
    """What `Companion.form` said when the adapter was saved that is to be loaded; None of a new insertion."""


class Companion:
    """Goes along with an insertion whose form the candidate does not say: decided from data, or changing in training.

    This one does nothing; methods override what they need.
    """

    def form(self) -> dict[str, Any]:
        """JSON values from which `OwnMethod.attach` makes the places for the tensors as they are now."""
        return {}

    def before_update(self) -> None:
        """Called in every step when the gradients are complete, before they are clipped; may add to them."""

    def after_step(self, step: int) -> bool:
        """Called after every optimiser step, counted from 1; returns whether other parameters train from now on."""
        return False

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on beside the trained parameters, as tensors on the CPU and JSON values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, as if never interrupted; the values of parameters are set afterwards.

        Raises:
            ValueError: where the state is of something else.
        """

    def fill(self) -> None:
        """Take the form of the training that needs most memory, for a forecast of it."""

    def fold(self) -> None:
        """Add what is trained to the weights of the base and stop acting; only of methods that merge."""


@dataclass(frozen=True)
class Attached:
    """What a method of ours did to a live model."""

    modules: tuple[str, ...]
    """Paths of the modules of the base that it acts on."""
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """All it trains, by names that are the same wherever the insertion is repeated; some may be the base's own."""
    companion: Companion | None = None
    """None of a method whose form the candidate says."""


class Method(ABC):
    """`autopeft.domain.ports.MethodRules` for one set of facts."""

    def __init__(self, facts: MethodFacts) -> None:
        self.facts = facts

    @property
    def name(self) -> str:
        """`facts.name`."""
        return self.facts.name

    def default_modules(self, layout: ModelLayout) -> tuple[str, ...]:
        """Query and value, as LoRA's paper has it; one fused matrix, or all linear modules, where they are no modules.

        Methods with another habit override this.
        """
        if not self.facts.takes_modules:
            return ()
        roles = layout.roles()
        for wanted in ((Role.QUERY, Role.VALUE), (Role.QKV,)):
            if all(role in roles for role in wanted):
                return tuple(sorted(role.value for role in wanted))
        return tuple(sorted(role.value for role in roles))

    def problems(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """What is wrong with the insertion on this model; `Problem.where` is `method`, `layers`, `modules` or a knob.

        What is particular to the method (`misfits`) is asked only of insertions that are right in form.
        """
        return problems_of(self.facts, insertion, layout) or self.misfits(insertion, layout)

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """What this very method cannot do on this model; called where task, places and settings are in order."""
        return []

    exact_count = True
    """Whether `trainable` is what is trained. Else it is what is aimed at: data or training decide the rest."""

    @abstractmethod
    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Trainable parameters, the head excluded, from a closed form that stands in the docstring."""

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """Paths of the modules that it wraps; of its own kind where there are none."""
        if self.facts.takes_modules:
            return frozenset(layout.paths(insertion.layers, insertion.modules))
        return frozenset({f"{self.facts.name}:{index}" for index in insertion.layers})

    def checked(self, insertion: Insertion, layout: ModelLayout) -> Insertion:
        """The insertion itself.

        Raises:
            UserError: where `problems` finds some.
        """
        problems = self.problems(insertion, layout)
        if problems:
            raise UserError(*problems)
        return insertion


class PeftMethod(Method):
    """A method that Hugging Face peft implements."""

    @abstractmethod
    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """The `peft.PeftConfig` of the insertion, without task and head, which are added where it is put in.

        Targets are full paths (`layout.paths`), so that nothing matches by accident. `steps` are the optimiser steps
        of the training to come. peft is imported here and not with the module.
        """

    def changes_base(self, insertion: Insertion) -> bool:
        """Whether putting it in overwrites weights of the base (PiSSA takes its first values out of them)."""
        return False

    exact_in_half_precision = True
    """Whether the saved adapter on a half-precision base is the very model that was trained."""

    def saved_as_difference(self, insertion: Insertion) -> bool:
        """Whether its adapter is saved as a plain LoRA less the first one, which was taken out of the base.

        False where loading it changes the base again (KaSA).
        """
        return self.changes_base(insertion)

    def prepare(
        self, model: Any, config: Any, insertion: Insertion, layout: ModelLayout, calibration: Calibration
    ) -> None:
        """Called before peft wraps the model, for what looks at data through the plain model; may change `config`."""

    def started(self, peft_model: Any, calibration: Calibration) -> None:
        """Called when peft has wrapped the model; for initialisations that look at data through the wrapped one."""

    def optimizer(
        self, peft_model: Any, insertion: Insertion, learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer | None:
        """An optimiser of the method's own; None for AdamW over everything. Only of a method that stands alone."""
        return None

    def after_step(self, peft_model: Any, step: int) -> None:
        """Called after every optimiser step (counted from 1) while the gradients are still there."""

    def state(self, peft_model: Any) -> dict[str, Any]:
        """All that `after_step` keeps from step to step beside the trained parameters, as tensors and JSON values."""
        return {}

    def load(self, peft_model: Any, state: Mapping[str, Any]) -> None:
        """Go on from a state, as if never interrupted; the values of trained parameters are set afterwards."""


class OwnMethod(Method):
    """A method that is ours: small modules beside the model's, or some of its own parameters trained in place."""

    in_place = False
    """Whether it trains parameters of the base; then it is attached before any other insertion moves them."""
    grows = False
    """Whether it looks at the gradients of every step, and other parameters may train after one than before."""

    @abstractmethod
    def attach(self, model: Any, layout: ModelLayout, insertion: Insertion, name: str, given: Given) -> Attached:
        """Put it into the model that `AutoModelFor…` returned.

        New modules are registered below the block that they act in, under `name` (one per insertion of a candidate)
        so that they move, train and show up with it; everything else is done by forward hooks on the modules at the
        layout's paths. Removal is not its business: attributes, children and hooks of every module go back to what
        they were, and parameters of the base that it returns are put back bit for bit.
        """


def modules_of(insertion: Insertion, layout: ModelLayout) -> list[ModuleLayout]:
    """The linear modules of the insertion, layer by layer, for closed forms."""
    found = [layout.layers[index].module(role) for index in insertion.layers for role in insertion.modules]
    return [module for module in found if module is not None]
