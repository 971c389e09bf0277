"""The shape of every training policy: its facts and rules, and its running state in one trial."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autopeft.domain.candidate import Candidate, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, Role
from autopeft.domain.method import TreatmentFacts
from autopeft.evaluate.policies.gates import Gates

if TYPE_CHECKING:  # binding a space needs the rules only, and no torch
    import torch

    from autopeft.evaluate.data.batches import Batch


@dataclass(frozen=True)
class Context:
    """The training that a policy works in."""

    base: Any
    """The model that `AutoModelFor…` returned, with the candidate's modules in it."""
    layout: ModelLayout
    gates: Gates
    settings: Mapping[str, Setting]
    seed: int
    """Of the trial: every draw of a policy is a function of it, of the step and of what the policy saw."""
    steps: int
    """Optimiser steps of the whole training."""
    batches: Sequence[Batch]
    """Of the training, in its order."""
    optimizer: torch.optim.Optimizer
    probe: Callable[[Sequence[Batch]], float]
    """Mean loss per row in evaluation mode, without gradients; leaves the model in training mode."""
    gradient_norms: Callable[[Sequence[Batch]], list[float]]
    """Norm of the gradient of every parameter that may train, in evaluation mode, so without dropout; 0 where there is
    none. Leaves no gradients, and the model in training mode."""


class RunningPolicy:
    """A policy at work in one trial; a pure function of candidate, seed and what it has seen.

    This one trains every layer in every step; policies override what they do otherwise.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def before_step(self, step: int) -> None:
        """Decide what trains in this step, counted from 0; may run the model on training rows."""

    def weight(self) -> float:
        """How much of the model the backward pass of the coming step goes through, in layers: decides what is watched.

        A layer above the lowest one that trains keeps its activations; one that trains keeps some more.
        """
        gates = self.context.gates
        depth = len(self.context.layout.layers)
        lowest = 0 if gates.below else min(gates.open, default=depth)
        return depth - lowest + len(gates.open) / (4 * max(1, depth))

    def cut(self) -> frozenset[tuple[int, Role]]:
        """Layers, and modules in them, whose output is kept out of the coming backward pass."""
        return frozenset()

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on, as JSON values; empty where the step decides alone."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, as if never interrupted."""

    def scores(self) -> Sequence[tuple[int, tuple[float, ...]]]:
        """Steps done, and importance of every layer that has a gate, higher is more important; over time."""
        return ()

    def close(self) -> None:
        """Take away what it put into the model; every layer may train again."""
        self.context.gates.set(self.context.gates.layers)


class TrainingPolicy(ABC):
    """`autopeft.domain.ports.TreatmentRules` for one set of facts."""

    def __init__(self, facts: TreatmentFacts) -> None:
        self.facts = facts

    @property
    def name(self) -> str:
        """`facts.name`."""
        return self.facts.name

    def problems(self, candidate: Candidate, layout: ModelLayout) -> list[Problem]:
        """What is wrong with the policy in this candidate: methods without layers to choose among, or its own rules."""
        from autopeft.evaluate.policies.checks import layers_to_choose

        return layers_to_choose(self.facts, candidate) or self.misfits(candidate, layout)

    def misfits(self, candidate: Candidate, layout: ModelLayout) -> list[Problem]:
        """What this very policy cannot do; called where there are layers to choose among."""
        return []

    @abstractmethod
    def start(self, context: Context) -> RunningPolicy:
        """The policy at work, before the first step; the optimiser knows every parameter already."""
