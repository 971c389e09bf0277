"""Neighbours that differ in one parameter, and climbing from neighbour to neighbour."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from autopeft.search.front.drawing import value_near
from autopeft.search.front.views import Point, View

Array = NDArray[np.float64]

_FEW = 12
"""A whole number with at most so many values moves to the next ones; the paper's sizes have 11."""
_DRAWN = 4
_SPREAD = 0.2
"""Any other number has so many neighbours, drawn around it with this standard deviation, as a share of its range."""


@dataclass(frozen=True)
class Climb:
    """One climb."""

    start: Point
    end: Point
    worth: float
    """Of the end."""


def neighbours(view: View, point: Point, rng: np.random.Generator) -> list[Point]:
    """The one-exchange neighbours: one parameter has another value, what depends on it is drawn anew.

    Every other choice; both next values of a number with few values; a few values near any other number.
    """
    found: dict[Hashable, Point] = {}
    for name in sorted(point.params):
        for value in _others(view.distributions[name], point.params[name], rng):
            neighbour = view.exchanged(point, name, value, rng)
            if neighbour is not None and neighbour.key != point.key:
                found.setdefault(neighbour.key, neighbour)
    return list(found.values())


def _others(distribution: BaseDistribution, value: Any, rng: np.random.Generator) -> Sequence[Any]:
    if distribution.single():
        return ()
    if isinstance(distribution, CategoricalDistribution):
        own = distribution.to_internal_repr(value)
        return [choice for index, choice in enumerate(distribution.choices) if index != own]
    if isinstance(distribution, IntDistribution):
        values = (distribution.high - distribution.low) // distribution.step + 1
        if values <= _FEW:
            beside = (value - distribution.step, value + distribution.step)
            return [one for one in beside if distribution.low <= one <= distribution.high]
    near = [value_near(distribution, value, _SPREAD * float(rng.normal())) for _ in range(_DRAWN)]
    return [one for one in near if one != value]


def climb(
    starts: Sequence[Point],
    around: Callable[[Point], Sequence[Point]],
    worth: Callable[[Sequence[Point]], Array],
    evaluations: int,
) -> list[Climb]:
    """Steepest ascent from every start until no neighbour is better or so many points were looked at.

    The climbs go on side by side, so that `worth` is asked for many points at once, and for none twice.

    Args:
        starts: At least one point.
        around: The neighbours of a point.
        worth: `[points]`, what is climbed; minus infinity where nobody may go.
        evaluations: Points in all; those of a round are looked at together, up to this bound.
    """
    known: dict[Hashable, float] = {}

    def look(points: Sequence[Point]) -> None:
        fresh = {point.key: point for point in points if point.key not in known}
        some = list(fresh.values())[: max(0, evaluations - len(known))]
        if some:
            known.update(zip((point.key for point in some), (float(one) for one in worth(some)), strict=True))

    look(starts)
    at, going = list(starts), set(range(len(starts)))
    while going and len(known) < evaluations:
        beside = {index: list(around(at[index])) for index in sorted(going)}
        look([point for points in beside.values() for point in points])
        for index, points in beside.items():
            best = max(points, key=lambda point: known.get(point.key, -math.inf), default=None)
            if best is None or known.get(best.key, -math.inf) <= known.get(at[index].key, -math.inf):
                going.discard(index)
            else:
                at[index] = best
    return [Climb(start, end, known.get(end.key, -math.inf)) for start, end in zip(starts, at, strict=True)]
