"""Early stopping on a front: which training may end at a rung because others, that need no more memory, are ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from autopeft.domain import pareto


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

    A stopped trial is wanted after all where its loss is within the reach of the best of its peers, as these are now:
    those that beat it turned out invalid or crashed, or the rung turned out to say less of the end than it did. A trial
    that is stopped is further away than that, so none is stopped and taken up in turns.
    """

    promotes: ClassVar[bool] = False
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

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        """See `StoppingRule.behind`: the loss above that of the best peer, less the reach."""
        reaches: dict[int, float] = {}
        found = {}
        for trial in standings:
            rung = len(trial.losses) - 1
            if not trial.stopped:
                continue
            if rung not in reaches:
                complete = [one for one in standings if one.complete and len(one.losses) > rung]
                reaches[rung] = reach(complete, rung, self.quantile)
            best = min(
                one.losses[rung]
                for one in standings
                if len(one.losses) > rung and one.memory <= trial.memory  # itself included
            )
            found[trial.number] = trial.losses[rung] - best - reaches[rung]
        return found


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


RULES: dict[str, StoppingRule] = {"front": FrontStopping(), "mo-asha": Halving()}
"""By the names that `--early-stopping` takes."""


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
