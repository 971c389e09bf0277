"""Early stopping on a front: what a rule is asked, and the rule of MO-ASHA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from autopeft.domain import pareto
from autopeft.domain.candidate import Setting


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
    stopped: bool = False
    """Whether it was stopped at the last of its rungs; it may be taken up again."""
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    """Of its candidate in the search space; may be left out."""


class StoppingRule(Protocol):
    """Decides at a rung; a pure function of the trials so far, so that a search that goes on decides alike."""

    promotes: ClassVar[bool]
    """Whether a stopped trial may be wanted again although one of the front was better at its rung."""

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        """Whether a trial that has just reached the rung `len(trial.losses) - 1` trains on.

        `others` are all other trials, running ones and those that were stopped included.
        """
        ...

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        """Of each stopped trial among all `standings`, by number: how far it is from being taken up again.

        At most 0 where it is wanted now. Numbers of one rung can be compared, and 0 is the same for all.
        """
        ...


@dataclass(frozen=True)
class Halving:
    """Multi-objective asynchronous successive halving (MO-ASHA): Schmucker et al. 2021, arXiv:2106.12639.

    Rung k holds every trial that reached it. The paper's algorithm 1 gives a free worker, from the highest rung down,
    a trial of the best `floor(|rung| / eta)` of a rung that was not yet promoted, and where there is none, a new
    candidate. So a trial trains on without a break where it is among these when it arrives, and is stopped otherwise,
    until the rung has grown so much that it is. Trials are ranked by fronts of (loss, memory) (non-dominated sorting)
    and within a front by the order of an epsilon-net (the paper's EpsNet): first the best in the first objective, then
    always the one furthest from those chosen. Distances are Euclidean with both objectives scaled to their span in the
    rung, since bytes and losses have no common unit.
    """

    promotes: ClassVar[bool] = True
    eta: float = 3.0

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        """See `StoppingRule.goes_on`."""
        rung = len(trial.losses) - 1
        return trial.number in self._best([*(one for one in others if one.number != trial.number), trial], rung)[0]

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        """See `StoppingRule.behind`: 0 for those to promote, else how many places are missing."""
        found: dict[int, float] = {}
        for rung in {len(one.losses) - 1 for one in standings if one.stopped}:
            best, ranked = self._best(standings, rung)
            places = {number: place for place, number in enumerate(ranked)}
            for one in standings:
                if one.stopped and len(one.losses) - 1 == rung:
                    found[one.number] = 0.0 if one.number in best else float(places[one.number] - len(best) + 1)
        return found

    def _best(self, standings: Sequence[Standing], rung: int) -> tuple[frozenset[int], list[int]]:
        """Numbers of those that a rung promotes, and of all in it, the best first."""
        field = sorted((one for one in standings if len(one.losses) > rung), key=lambda one: one.number)
        order = _ranked(np.array([(one.losses[rung], one.memory) for one in field], dtype=float).reshape(-1, 2))
        ranked = [field[index].number for index in order]
        return frozenset(ranked[: math.floor(len(field) / self.eta)]), ranked


def most_wanted(rule: StoppingRule, standings: Sequence[Standing]) -> int | None:
    """The stopped trial to take up again: of the highest rung that has a wanted one, the least behind."""
    stopped = {one.number: len(one.losses) for one in standings if one.stopped}
    if not stopped:
        return None
    wanted = [(-stopped[number], away, number) for number, away in rule.behind(standings).items() if away <= 0]
    return min(wanted)[2] if wanted else None


RULES = ("front", "mo-asha")
"""The names that `--early-stopping` takes; `autopeft.search.stopping.rule_of` makes them."""


def _ranked(points: pareto.Points) -> list[int]:
    """Indices of points `[n, 2]` to minimise, best first."""
    if len(points) == 0:
        return []
    depths, span = pareto.layers(points), np.ptp(points, axis=0)
    scaled = points / np.where(span > 0, span, 1.0)
    return [index for depth in range(depths.max() + 1) for index in _net(scaled, np.flatnonzero(depths == depth))]


def _net(points: pareto.Points, front: NDArray[np.int_]) -> list[int]:
    """Indices of a front in the order of an epsilon-net; of equals, the first in `front` comes first."""
    first = int(front[np.lexsort((front, points[front, 1], points[front, 0]))[0]])
    chosen, left = [first], [int(index) for index in front if index != first]
    away = np.sum((points[left] - points[first]) ** 2, axis=1)
    while left:
        furthest = int(np.argmax(away))
        index = left.pop(furthest)
        chosen.append(index)
        away = np.minimum(np.delete(away, furthest), np.sum((points[left] - points[index]) ** 2, axis=1))
    return chosen
