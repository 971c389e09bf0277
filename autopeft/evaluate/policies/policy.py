"""The shape of every training policy: its facts and rules, and its running state in one trial."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import TreatmentFacts

class RunningPolicy(Protocol):
    """A policy at work in one trial; a function of the candidate, the trial's seed and what it has seen."""

    def before_step(self, step: int) -> None:
        """Decide what trains in this step, counted from 0: sets `requires_grad`, nothing else."""
        ...

    def after_backward(self, step: int) -> None:
        """Look at the gradients of this step, before the optimiser uses them."""
        ...

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on, as JSON values and tensors."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state, as if never interrupted."""
        ...

    def scores(self) -> Sequence[tuple[int, tuple[float, ...]]]:
        """Importance of every layer over time, higher is more important; empty where it keeps none."""
        ...


class TrainingPolicy(ABC):
    """`autopeft.domain.ports.TreatmentRules` for one set of facts."""

    def __init__(self, facts: TreatmentFacts) -> None:
        self.facts = facts

    @abstractmethod
    def problems(self, candidate: Candidate, layout: ModelLayout) -> list[Problem]:
        """What is wrong with the policy in this candidate."""

