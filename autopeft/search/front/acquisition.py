"""Expected hypervolume improvement in closed form, for objectives that are known exactly and others that are not.

Everything here is to be minimised. Let the first objective, f, be a black box with a normal belief, and let c be the
other m - 1 objectives, known exactly for every candidate. The front so far has levels

    Q(u) = the least f of a front point whose other objectives are all at most u, else the reference's f.

A candidate x improves the hypervolume by what it adds below Q(u) wherever it is there, at u >= c(x):

    HVI(x) = ∫_{c(x)}^{r} max(0, Q(u) - f(x)) du,

and Q is constant on disjoint boxes [l_b, u_b) with levels q_b. For two objectives these are the steps of the front's
staircase. So

    EHVI(x) = Σ_b  E[max(0, q_b - f(x))]  ·  Π_a ( max(0, u_ba - c_a(x)) - max(0, l_ba - c_a(x)) ):        (1)

width of a step that lies beyond x, times the expected improvement over that step's level. No more is needed than a sum
of plain expected improvements, EI(z) = sd (z Φ(z) + φ(z)) with z = (level - mean)/sd.

Where another objective is uncertain too, with a normal belief independent of f's, the inner terms are replaced by their
expectations, E[max(0, u_ba - c_a)] - E[max(0, l_ba - c_a)], and (1) stays exact (for two black boxes it is the formula
of Emmerich et al. 2011, for more that of Yang et al. 2019 on another decomposition). An exact objective has sd 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from autopeft.domain.pareto import non_dominated

Array = NDArray[np.float64]

_CHUNK = 4_000_000
"""Numbers in one intermediate array."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """Where the level is constant, in the space of the objectives other than the first."""

    lower: Array
    """`[boxes, m - 1]`; minus infinity where nothing bounds it."""
    upper: Array
    """`[boxes, m - 1]`."""
    level: Array
    """`[boxes]`: value of the first objective that must be beaten there."""


def boxes(front: Array, reference: Array) -> Boxes:
    """Disjoint boxes of constant level below the reference.

    Points are added by rising level; each claims the part of its quadrant that no better point has claimed.

    Args:
        front: `[points, m]`, any points; dominated and equal ones change nothing.
        reference: `[m]`; points beyond it add nothing.
    """
    inside = front[np.all(front < reference, axis=1)]
    inside = np.unique(inside[non_dominated(inside)], axis=0) if len(inside) else inside
    corners = np.vstack([inside, np.concatenate([reference[:1], np.full(len(reference) - 1, -np.inf)])])
    lower: list[tuple[float, ...]] = []
    upper: list[tuple[float, ...]] = []
    level: list[float] = []
    for index, point in enumerate(corners):
        for low, high in _claimed(point[1:], corners[:index, 1:], reference[1:]):
            lower.append(low)
            upper.append(high)
            level.append(float(point[0]))
    shape = (len(level), front.shape[1] - 1)
    return Boxes(np.array(lower).reshape(shape), np.array(upper).reshape(shape), np.array(level))


def _claimed(corner: Array, earlier: Array, top: Array) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """The quadrant above `corner [k]` below `top`, less the quadrants above `earlier [n, k]`, as disjoint boxes."""
    if len(corner) == 0:
        return [] if len(earlier) else [((), ())]
    if len(corner) == 1:
        end = min([float(top[0]), *earlier[:, 0].tolist()])
        return [((float(corner[0]),), (end,))] if end > corner[0] else []
    # Between two neighbouring coordinates of the last objective, the same earlier points count.
    cuts = np.unique(earlier[:, -1])
    edges = [float(corner[-1]), *[float(cut) for cut in cuts if corner[-1] < cut < top[-1]], float(top[-1])]
    found = []
    for low, high in pairwise(edges):
        for below, above in _claimed(corner[:-1], earlier[earlier[:, -1] <= low][:, :-1], top[:-1]):
            found.append(((*below, low), (*above, high)))
    return found


def expected_improvement(level: Array, mean: Array, sd: Array) -> Array:
    """E[max(0, level - f)] for f normal with `mean` and `sd`; where sd is 0, max(0, level - mean). Broadcasts."""
    gap = level - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        z = gap / sd
        density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
        value = sd * (z * ndtr(z) + density)
    return np.where(sd > 0, np.maximum(value, 0.0), np.maximum(gap, 0.0))


def expected_hypervolume_improvement(mean: Array, sd: Array, space: Boxes) -> Array:
    """Equation (1) of this module for every candidate.

    Args:
        mean: `[candidates, m]`: expected objectives.
        sd: `[candidates, m]`: their standard deviations; 0 where an objective is known.
        space: The front so far, from `boxes`.
    """
    total = np.zeros(len(mean))
    step = max(1, _CHUNK // max(1, len(space.level)))
    for start in range(0, len(mean), step):
        rows = slice(start, start + step)
        value = _over(space.level, mean[rows, 0], sd[rows, 0])
        for axis in range(space.lower.shape[1]):
            high = _over(space.upper[:, axis], mean[rows, axis + 1], sd[rows, axis + 1])
            value *= high - _over(space.lower[:, axis], mean[rows, axis + 1], sd[rows, axis + 1])
        total[rows] = value.sum(axis=1)
    return total


def _over(levels: Array, mean: Array, sd: Array) -> Array:
    """`[candidates, levels]`: expected improvements, each distinct level computed once; 0 at minus infinity."""
    distinct, where = np.unique(levels, return_inverse=True)
    finite = np.isfinite(distinct)
    found = np.zeros((len(mean), len(distinct)))
    if np.all(sd == 0):
        found[:, finite] = np.maximum(0.0, distinct[finite][None, :] - mean[:, None])
    else:
        found[:, finite] = expected_improvement(distinct[finite][None, :], mean[:, None], sd[:, None])
    return found[:, where.ravel()]
