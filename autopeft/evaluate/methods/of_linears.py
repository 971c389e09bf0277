"""What many methods of peft have in common: they wrap chosen linear modules, one at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.domain.space import FloatDomain, IntDomain
from autopeft.evaluate.methods.checks import narrower_than
from autopeft.evaluate.methods.fit import linear_only
from autopeft.evaluate.methods.method import PeftMethod, modules_of

RANK = IntDomain(low=1, high=4096, log=True)
SCALE = FloatDomain(low=1e-3, high=1e3, log=True)
DROPOUT = FloatDomain(low=0.0, high=0.9)
LADDER = (1, 2, 4, 8, 16, 32, 64)


class OfLinears(PeftMethod):
    """A method that wraps linear modules; a subclass says its configuration and what one module trains."""

    config_class: ClassVar[str]
    """Its name in `peft`."""
    takes_conv1d: ClassVar[bool] = True
    """Whether peft also wraps GPT-2's `Conv1D`."""
    bounded: ClassVar[str | None] = "rank"
    """The setting that no side of a module may be smaller than."""

    @abstractmethod
    def arguments(self, insertion: Insertion, layout: ModelLayout) -> dict[str, Any]:
        """Arguments of the configuration; `target_modules` are added where they are missing."""

    def per_module(self, insertion: Insertion, module: ModuleLayout) -> int:
        """Trainable parameters of one module."""
        raise NotImplementedError  # of methods that count otherwise

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the modules of `per_module`, whose docstring has the formula."""
        return sum(self.per_module(insertion, module) for module in modules_of(insertion, layout))

    def config(self, insertion: Insertion, layout: ModelLayout, steps: int) -> Any:
        """The configuration of peft, with `arguments`."""
        import peft

        targets = {"target_modules": list(layout.paths(insertion.layers, insertion.modules))}
        return getattr(peft, self.config_class)(**{**targets, **self.arguments(insertion, layout)})

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Modules of a kind that peft refuses, a `bounded` setting above the smaller side of one."""
        found = [] if self.takes_conv1d else linear_only(self.name, insertion, layout)
        return found + (narrower_than(self.bounded, insertion, layout) if self.bounded else [])


def alpha_of(insertion: Insertion) -> int | float:
    """`alpha_ratio * rank`; whole where it is, because peft annotates it as an integer."""
    alpha = float(insertion.settings["alpha_ratio"]) * int(insertion.settings["rank"])
    return int(alpha) if alpha.is_integer() else alpha
