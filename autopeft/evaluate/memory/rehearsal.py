"""Which layers a policy will train in each step, as far as that is known before the training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from autopeft.domain.candidate import Candidate
from autopeft.domain.layout import ModelLayout, Role
from autopeft.evaluate.arithmetic import batch_load
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.memory.breakdown import Moment
from autopeft.evaluate.memory.kinds import EVERYTHING, Pattern, branches_of, trains_in
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.policies import POLICIES, Context

HEAVIEST = 24
"""So many different choices of layers are looked at, those whose steps are expected to take most."""


_LESS = 0.1


@dataclass(frozen=True)
class Probe:
    """Gradients that a policy asks for between two steps, in evaluation mode."""

    rows: int
    """Of its largest batch."""
    batches: int
    """So many of them, whose gradients add up."""
    moment: Moment


@dataclass(frozen=True)
class Rehearsal:
    """What of a training may need the most memory."""

    steps: tuple[tuple[Pattern, tuple[Moment, ...]], ...]
    """What trains, and when: the heaviest first."""
    probes: tuple[Probe, ...] = ()


class _Gates:
    """Which layers a policy opens, of a model that is not there: one parameter stands for all of a layer."""

    below = False

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.open: frozenset[int] = frozenset(layers)
        self.owned = {layer: nn.Parameter(torch.zeros(1)) for layer in layers}

    def parameters(self, layer: int) -> list[nn.Parameter]:
        return [self.owned[layer]]

    def set(self, layers: Collection[int]) -> None:
        self.open = frozenset(layers)
        for layer, part in self.owned.items():
            part.requires_grad_(layer in self.open)


class _Widths:
    """A model of which nothing is there but the widths of its linear modules; hooks do nothing in it."""

    def __init__(self, layout: ModelLayout) -> None:
        self._modules = {one.path: one for layer in layout.layers for one in layer.modules}

    def get_submodule(self, path: str) -> nn.Module:
        found = self._modules.get(path)
        return nn.Linear(found.in_features, found.out_features, device="meta") if found else nn.Module()


def rehearsed(
    candidate: Candidate, layout: ModelLayout, seed: int, batches: Sequence[Batch], passes: int, setup: Setup
) -> Rehearsal:
    """Go through a training without doing it.

    Draws are the policy's own. Scores that it would learn on the way stay at their start, and gradients are taken to be
    as large in one layer as in another.

    Args:
        candidate: Whose policy is asked.
        layout: Of the model.
        seed: The trial's.
        batches: Of the training, in its order.
        passes: Forward passes, so batches, per step.
        setup: Of the step whose memory is known.
    """
    largest = setup.rows * setup.tokens
    loads = [max(map(batch_load, batches[start : start + passes])) for start in range(0, len(batches), passes)]
    policy = candidate.policy
    layers = candidate.layers()
    if policy is None or not layers:
        return Rehearsal(((EVERYTHING, (Moment(share=_share(max(loads), largest)),)),))
    gates = _Gates(layers)
    optimizer = SimpleNamespace(state={})
    probes: list[Probe] = []

    def with_state() -> frozenset[int]:
        return frozenset(layer for layer, part in gates.owned.items() if part in optimizer.state)

    def gradient_norms(rows: Sequence[Batch]) -> list[float]:
        heaviest = max(rows, key=batch_load)
        width = heaviest.inputs["input_ids"].shape[1]
        probes.append(Probe(heaviest.rows, len(rows), Moment(with_state(), min(1.0, width / setup.tokens))))
        return _norms(candidate, running.cut())

    widths: Any = _Widths(layout)
    context = Context(
        base=widths,
        layout=layout,
        gates=gates,  # type: ignore[arg-type]  # all that policies ask of gates
        settings=policy.settings,
        seed=seed,
        steps=len(loads),
        batches=batches,
        optimizer=optimizer,  # type: ignore[arg-type]  # and of an optimiser
        probe=lambda rows: 1.0,
        gradient_norms=gradient_norms,
    )
    running = POLICIES[policy.name].start(context)
    found: dict[Pattern, tuple[float, list[Moment]]] = {}
    for step, load in enumerate(loads):
        running.before_step(step)
        pattern = Pattern(gates.open, running.cut())
        heaviest, moments = found.get(pattern, (0.0, []))
        moments = _heaviest((*moments, Moment(with_state(), _share(load, largest))))
        found[pattern] = (max(heaviest, running.weight() * load), moments)
        for layer in gates.open:
            if trains_in(candidate, layer, pattern):
                optimizer.state[gates.owned[layer]] = True
    order = sorted(found.items(), key=lambda item: -item[1][0])
    steps = tuple((pattern, tuple(moments)) for pattern, (_, moments) in order[:HEAVIEST])
    # Probes differ in what they leave out, of which the first leaves out nothing.
    return Rehearsal(steps, tuple(probes[:1]))


def _norms(candidate: Candidate, cut: frozenset[tuple[int, Role]]) -> list[float]:
    """Of the gradients without some branches: none of what stands in them, and a little less of everything else."""
    found = [1.0 - _LESS * len(cut)]
    for one in candidate.insertions:
        places = ((layer, branch) for layer in one.layers for branch in sorted(branches_of(one)))
        found.extend(0.0 if place in cut else 1.0 for place in places)
    return found


def _share(load: float, largest: float) -> float:
    return min(1.0, load / largest)  # a load has half a token more where rows are padded


def _heaviest(moments: Sequence[Moment]) -> list[Moment]:
    """Without those that another one is as large as, and has as much state as; of equal ones the first stays."""
    found: list[Moment] = []
    for one in moments:
        if not any(one.within(other) for other in found):
            found = [*(other for other in found if not other.within(one)), one]
    return found


def alike(setup: Setup, count: int) -> list[Batch]:
    """So many different batches of the size that memory is known for, of rows that are not there."""
    ids = torch.zeros(1, 1, dtype=torch.int64).expand(setup.rows, setup.tokens)
    tokens = setup.rows * setup.tokens - setup.padded
    return [
        Batch({"input_ids": ids, "attention_mask": ids}, ids[:, 0], tuple(range(at, at + setup.rows)), tokens)
        for at in range(0, count * setup.rows, setup.rows)
    ]
