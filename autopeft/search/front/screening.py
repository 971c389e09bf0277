"""Which points are likely to be infeasible: by what is known, by what failed nearby, and by a learned edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.search.feasibility import fit_edge, sigmoid
from autopeft.search.front.views import Point

Array = NDArray[np.float64]

RISK = 0.3
"""Points that are infeasible with a greater probability are tried only where there is no other."""
_NEAR = 0.1
"""Points this near to an infeasible one, in every input of the surrogate, are taken for infeasible."""


@dataclass(frozen=True)
class Tried:
    """Trials that told something of feasibility."""

    complete: Sequence[Point]
    infeasible: Sequence[Point]


def risks(points: Sequence[Point], tried: Tried) -> Array:
    """Probability of each point that it is infeasible, `[points]`.

    1 where that is known, where the point is known to need at least the memory of one that was infeasible, and near one
    that was; else by logistic regression of "infeasible" on the surrogate's inputs.
    """
    found = np.array([0.0 if point.feasible else 1.0 for point in points])
    if not tried.infeasible or not points:
        return found
    rows, bad = (np.array([point.row for point in some]) for some in (points, tried.infeasible))
    good = np.array([point.row for point in tried.complete]).reshape(-1, bad.shape[1])
    targets = np.array([1.0] * len(bad) + [0.0] * len(good))
    found = np.maximum(found, sigmoid(_inputs(rows) @ fit_edge(_inputs(np.vstack([bad, good])), targets)))
    limits = [point.memory for point in tried.infeasible if point.memory is not None]
    over = [bool(limits) and point.memory is not None and point.memory >= min(limits) for point in points]
    near = np.array([bool(np.any(np.abs(bad - row).max(axis=1, initial=0.0) < _NEAR)) for row in rows])
    return np.where(near | np.array(over), 1.0, found)


def likely(points: Sequence[Point], risk: Array) -> list[Point]:
    """Those that are likely to be feasible; where none is, the least unlikely."""
    bound = max(RISK, float(risk.min()))
    return [point for point, one in zip(points, risk, strict=True) if one <= bound]


def _inputs(rows: Array) -> Array:
    """`[n, d]` -> `[n, 1 + d]`: a constant, and inputs from -1 to 1."""
    return np.column_stack([np.ones(len(rows)), 2.0 * rows - 1.0])
