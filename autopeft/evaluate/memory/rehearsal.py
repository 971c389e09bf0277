"""Which layers a policy will train in each step, as far as that is known before the training."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from autopeft.domain.candidate import Candidate
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.memory.kinds import EVERYTHING, Pattern
from autopeft.evaluate.policies import POLICIES, Context

HEAVIEST = 24
"""So many of the different steps are looked at, those that are expected to take most."""


class _Gates:
    """Which layers a policy opens, of a model that is not there."""

    below = False

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.open: frozenset[int] = frozenset(layers)

    def parameters(self, layer: int) -> list[nn.Parameter]:
        return []

    def set(self, layers: Collection[int]) -> None:
        self.open = frozenset(layers)


class _Widths:
    """A model of which nothing is there but the widths of its linear modules; hooks do nothing in it."""

    def __init__(self, layout: ModelLayout) -> None:
        self._modules = {one.path: one for layer in layout.layers for one in layer.modules}

    def get_submodule(self, path: str) -> nn.Module:
        found = self._modules.get(path)
        return nn.Linear(found.in_features, found.out_features, device="meta") if found else nn.Module()


def patterns(candidate: Candidate, layout: ModelLayout, seed: int, steps: int, tokens: int) -> list[Pattern]:
    """The steps that may be the heaviest, of a training of so many with a policy; a single one without a policy.

    Draws are the policy's own. What it would learn on the way (scores, sensitivities) stays at its start.
    """
    policy = candidate.policy
    layers = candidate.layers()
    if policy is None or not layers:
        return [EVERYTHING]
    gates = _Gates(layers)
    row = torch.zeros(1, tokens, dtype=torch.int64)
    batch = SimpleNamespace(
        inputs={"input_ids": row, "attention_mask": row}, labels=row, rows=1, row_ids=(0,), tokens=tokens
    )
    widths: Any = _Widths(layout)
    context = Context(
        base=widths,
        layout=layout,
        gates=gates,  # type: ignore[arg-type]  # all that policies ask of gates
        settings=policy.settings,
        seed=seed,
        steps=steps,
        batches=[batch],  # type: ignore[list-item]  # the same of a batch
        optimizer=SimpleNamespace(state={}),  # type: ignore[arg-type]  # and of an optimiser
        probe=lambda batches: 1.0,
        gradient_norms=lambda batches: [0.0],
    )
    running = POLICIES[policy.name].start(context)
    found: dict[Pattern, float] = {}
    for step in range(steps):
        running.before_step(step)
        found.setdefault(Pattern(gates.open, running.cut()), running.weight())
    order = np.argsort([-weight for weight in found.values()], kind="stable")
    return [list(found)[index] for index in order[:HEAVIEST]]
