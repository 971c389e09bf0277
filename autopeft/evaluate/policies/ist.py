"""IST, importance-aware sparse tuning: the layers that matter now are trained more often.

Yao et al., Findings of EMNLP 2024. The rule here is that of the released code; what differs is said where it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.evaluate.policies.checks import outputs_to_damp
from autopeft.evaluate.policies.damping import Damping
from autopeft.evaluate.policies.draws import share, stream, subset
from autopeft.evaluate.policies.policy import Context, RunningPolicy, TrainingPolicy
from autopeft.evaluate.policies.probes import probe_rows

if TYPE_CHECKING:
    from autopeft.evaluate.data.batches import Batch

_TRAINED, _DAMPED, _ROWS = 3, 4, 5
_TRIES = 64
"""So many draws for a subset that was not probed yet; then the weights are left out, which ends soon."""


def sigmoid(score: float) -> float:
    """The logistic function, without overflow."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def rewards(losses: Sequence[float], kind: str) -> list[float]:
    """One reward per probe, 0 on average; high where damping did no harm.

    `exponential`: `exp(-l_k) - mean_j exp(-l_j)`, as published; it vanishes where losses are high (exp(-5) = 0.007).
    `standardised`: `(mean l - l_k) / std l`, which does not.
    """
    if kind == "standardised":
        mean = math.fsum(losses) / len(losses)
        spread = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / len(losses))
        return [(mean - loss) / spread if spread > 0 else 0.0 for loss in losses]
    gains = [math.exp(-loss) for loss in losses]
    mean = math.fsum(gains) / len(gains)
    return [gain - mean for gain in gains]


def updated(
    scores: Sequence[float], damped: Sequence[Sequence[int]], reward: Sequence[float], rate: float
) -> tuple[float, ...]:
    """`s_i + rate * sum_k 1[i in S_k] R_k p_i (1 - p_i)` with `p_i = sigmoid(s_i)` before the update.

    `damped` holds positions in `scores`. A high score says that damping the layer did no harm: it matters less.
    """
    found = []
    for place, score in enumerate(scores):
        slope = sigmoid(score) * (1 - sigmoid(score))
        gained = math.fsum(gain for places, gain in zip(damped, reward, strict=True) if place in places)
        found.append(score + rate * gained * slope)
    return tuple(found)


def distinct_subsets(
    random: np.random.Generator, weights: Sequence[float], size: int, wanted: int
) -> list[tuple[int, ...]]:
    """So many different subsets of positions, by weights; fewer where there are fewer at all (the release hangs)."""
    found: list[tuple[int, ...]] = []
    places = range(len(weights))
    for _ in range(min(wanted, math.comb(len(weights), size))):
        tries = 0
        while (one := subset(random, places, size, weights if tries < _TRIES else None)) in found:
            tries += 1
        found.append(one)
    return found


class _Running(RunningPolicy):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._damping = Damping(context.base, context.layout)
        self._scores: tuple[float, ...] = (0.0,) * len(context.gates.layers)
        self._history: list[tuple[int, tuple[float, ...]]] = []

    def before_step(self, step: int) -> None:
        gates, settings = self.context.gates, self.context.settings
        if step > 0 and step % int(settings["interval"]) == 0:
            self._update(step)
        count = share(float(settings["trained"]), len(gates.layers))
        weights = [sigmoid(-score) for score in self._scores]
        gates.set(subset(stream(self.context.seed, step, _TRAINED), gates.layers, count, weights))

    def state(self) -> dict[str, Any]:
        return {
            "scores": list(self._scores),
            "history": [[step, list(scores)] for step, scores in self._history],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._scores = tuple(state["scores"])
        self._history = [(int(step), tuple(scores)) for step, scores in state["history"]]

    def scores(self) -> Sequence[tuple[int, tuple[float, ...]]]:
        """Importance is the negative of the published score."""
        return tuple(self._history)

    def _update(self, step: int) -> None:
        context, settings = self.context, self.context.settings
        rows = probe_rows(context.batches, int(settings["rows"]), stream(context.seed, step, _ROWS))
        random = stream(context.seed, step, _DAMPED)
        size = share(float(settings["damped"]), len(self._scores))
        damped = distinct_subsets(random, [sigmoid(score) for score in self._scores], size, int(settings["probes"]))
        losses = [self._loss(rows, places) for places in damped]
        reward = rewards(losses, str(settings["reward"]))
        self._scores = updated(self._scores, damped, reward, float(settings["score_rate"]))
        self._history.append((step, tuple(-score + 0.0 for score in self._scores)))

    def _loss(self, rows: Sequence[Batch], places: Sequence[int]) -> float:
        layers = [self.context.gates.layers[place] for place in places]
        with self._damping.at(layers, float(self.context.settings["factor"])):
            return self.context.probe(rows)


class Ist(TrainingPolicy):
    """Scores of layers by damped probes; a sparse random choice by these scores in every step."""

    def misfits(self, candidate: Candidate, layout: ModelLayout) -> list[Problem]:
        """Methods whose output cannot be damped."""
        return outputs_to_damp(self.facts, candidate)

    def start(self, context: Context) -> RunningPolicy:
        """The policy at work."""
        return _Running(context)


POLICY = Ist(
    TreatmentFacts(
        name="ist",
        title="IST",
        paper="Yao et al., Findings of EMNLP 2024",
        summary="Trains the layers that matter now: scores them by how much the loss rises where their adapters are "
        "damped, and draws a part of them by score in every step.",
        settings={
            "interval": IntDomain(low=1, high=100_000),
            "probes": IntDomain(low=2, high=64),
            "score_rate": FloatDomain(low=1e-3, high=1e3, log=True),
            "factor": FloatDomain(low=0.0, high=0.95),
            "trained": FloatDomain(low=0.01, high=1.0),
            "damped": FloatDomain(low=0.01, high=0.99),
            "rows": IntDomain(low=1, high=1024),
            "reward": ChoiceDomain(values=("exponential", "standardised")),
        },
        defaults={
            "interval": 10,
            "probes": 3,
            "score_rate": 10.0,
            "factor": 0.25,
            "trained": 0.25,
            "damped": 0.5,
            "rows": 16,
            "reward": "exponential",
        },
    )
)
