"""Early stopping on a front: which training may end at a rung because others, that need no more memory, are ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Standing:
    """How far a trial has come; `losses` are its quality at the rungs reached, as losses (to minimise)."""

    number: int
    memory: float
    """What it needs, in whatever unit all trials share; known from its first rung on."""
    losses: tuple[float, ...]
    complete: bool = False
    """Whether it was trained to the end; its last loss is then final."""
    train_losses: tuple[float, ...] = ()
    """Mean training loss before each rung; may be left out."""


class StoppingRule(Protocol):
    """Decides at a rung; a pure function of the trials so far, so that a search that goes on decides alike."""

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        """Whether a trial that has just reached the rung `len(trial.losses) - 1` trains on.

        `others` are all other trials, running ones and those that were stopped included.
        """
        ...


@dataclass(frozen=True)
class FrontStopping:
    """A trial goes on while its quality is within reach of the best among trials that need no more memory.

    Asynchronous successive halving (Li et al., MLSys 2020, arXiv:1810.05934, the variant that stops) lets a trial go on
    past a rung where it is among the best 1/eta of all that reached the rung. Its multi-objective form (Schmucker et
    al. 2021, arXiv:2106.12639) ranks by non-dominated sorting. Here one objective, memory, is known when training
    begins, so each trial is compared along the other only, with its peers: the trials that reached the same rung and
    need no more memory (none of the others could push it off the front). It goes on where one of these holds:

    1. it is among the best `ceil(peers / eta)` of its peers and itself, so the only one of its band always does;
    2. its loss exceeds that of the last of those by no more than a margin, `reach` at this rung.

    The reach is learned from pairs of complete trials: of all pairs in which the one that was behind at the rung was
    not behind at the end, the `quantile` of how far it was behind. Where a rung says nothing of the end, half of all
    pairs change places and the reach is as wide as the scores are, so that nothing is stopped; where it tells
    everything, there are no such pairs and the reach is 0. Before `least` trials are complete, nothing is stopped.
    """

    eta: float = 3.0
    quantile: float = 0.9
    least: int = 6

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        """See `StoppingRule.goes_on`."""
        rung = len(trial.losses) - 1
        own = trial.losses[rung]
        complete = [one for one in others if one.complete and len(one.losses) > rung]
        if len(complete) < self.least:
            return True
        peers = sorted(one.losses[rung] for one in others if len(one.losses) > rung and one.memory <= trial.memory)
        ahead = sum(loss < own for loss in peers)
        room = math.ceil((len(peers) + 1) / self.eta)
        if ahead < room:
            return True
        return own - peers[room - 1] <= reach(complete, rung, self.quantile)


@dataclass(frozen=True)
class Halving:
    """Multi-objective asynchronous successive halving: Schmucker et al. 2021 (arXiv:2106.12639), stopping variant.

    A trial goes on where it is among the best 1/eta of all that reached its rung, ranked by fronts of (loss, memory)
    and within a front by the order of an epsilon-net (their section 3): first the best in the first objective, then
    always the one furthest from those chosen.
    """

    eta: float = 3.0

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        """See `StoppingRule.goes_on`."""
        rung = len(trial.losses) - 1
        field = [one for one in (*others, trial) if len(one.losses) > rung]
        ranked = _ranked([(one.losses[rung], one.memory) for one in field])
        place = ranked.index(len(field) - 1)
        return place < max(1, math.floor(len(field) / self.eta))


def reach(complete: Sequence[Standing], rung: int, quantile: float) -> float:
    """How far behind at a rung trials were that were not behind at the end, see `FrontStopping`."""
    gaps = sorted(
        behind.losses[rung] - ahead.losses[rung]
        for behind in complete
        for ahead in complete
        if behind.losses[rung] > ahead.losses[rung] and behind.losses[-1] <= ahead.losses[-1]
    )
    # No interpolation: with few pairs, the next larger gap is on the safe side.
    return gaps[min(len(gaps) - 1, math.ceil(quantile * len(gaps)) - 1)] if gaps else 0.0


def _ranked(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of points to minimise, best first."""
    left, order = list(range(len(points))), list[int]()
    spans = [max(column) - min(column) or 1.0 for column in zip(*points, strict=True)]
    while left:
        front = [one for one in left if not any(_dominates(points[other], points[one]) for other in left)]
        left = [one for one in left if one not in front]
        order += _net([points[index] for index in front], front, spans)
    return order


def _net(points: Sequence[tuple[float, float]], names: Sequence[int], spans: Sequence[float]) -> list[int]:
    free = sorted(range(len(points)), key=lambda index: (*points[index], names[index]))
    chosen = [free.pop(0)]

    def far(index: int) -> float:
        return min(
            sum(((a - b) / span) ** 2 for a, b, span in zip(points[index], points[other], spans, strict=True))
            for other in chosen
        )

    while free:
        furthest = max(free, key=far)
        free.remove(furthest)
        chosen.append(furthest)
    return [names[index] for index in chosen]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
