"""Fronts and hypervolume. Every array here is to be minimised: `[points, objectives]`, finite."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Which rows no other row dominates (is nowhere worse and somewhere better); equal rows stay together.

    `points [n, m]` -> `[n]`. One sweep over the sorted rows for two objectives, O(n log n); for more, one comparison
    with all that are left for each row of the front, O(n·f·m).
    """
    if points.shape[1] <= 2:
        return np.equal(layers(points, until=1), 0)
    left = np.lexsort(points.T[::-1])
    keep = np.zeros(len(points), dtype=bool)
    while len(left):
        row = points[left[0]]  # what comes after it in this order cannot dominate it
        same = np.all(points[left] == row, axis=1)
        keep[left[same]] = True
        left = left[np.any(points[left] < row, axis=1)]
    return keep


def layers(points: Points, until: int | None = None) -> NDArray[np.int_]:
    """0 for the front, 1 for the front of the rest, and so on; `points [n, m]` -> `[n]`.

    With `until`, ranks are exact as long as fewer rows than that are in better layers; all others share the next rank.
    """
    found, left, depth = np.zeros(len(points), dtype=int), np.arange(len(points)), 0
    if points.shape[1] <= 2:
        return _swept(points)
    while len(left) and (until is None or len(points) - len(left) < until):
        front = non_dominated(points[left])
        found[left[front]] = depth
        left, depth = left[~front], depth + 1
    found[left] = depth
    return found


def _swept(points: Points) -> NDArray[np.int_]:
    """Layers of one or two objectives: in order of the first, each layer's least second decides (Jensen 2003)."""
    found = np.zeros(len(points), dtype=int)
    second = points[:, -1]
    least: list[float] = []
    last = None
    for index in np.lexsort(points.T[::-1]).tolist():
        row = tuple(points[index].tolist())
        # All before are no worse in the first; a layer with a second no greater dominates, unless it is this very row.
        depth = found[last[1]] if last is not None and last[0] == row else bisect_right(least, float(second[index]))
        if depth == len(least):
            least.append(float(second[index]))
        least[depth] = float(second[index])
        found[index] = depth
        last = (row, index)
    return found


def hypervolume(points: Points, reference: Points) -> float:
    """Volume that the points dominate below `reference [m]`; rows beyond the reference add nothing.

    Slices along the last objective and recurses (HSO, While et al. 2006); meant for fronts of at most
    a few hundred points and up to four objectives.
    """
    inside = points[np.all(points < reference, axis=1)]
    if len(inside) == 0:
        return 0.0
    inside = inside[non_dominated(inside)]
    if inside.shape[1] == 1:
        return float(reference[0] - inside.min())
    if inside.shape[1] == 2:
        ordered = np.unique(inside, axis=0)
        right = np.append(ordered[1:, 0], reference[0])
        return float(np.sum((right - ordered[:, 0]) * (reference[1] - ordered[:, 1])))
    ordered = inside[np.argsort(inside[:, -1], kind="stable")]
    tops = np.append(ordered[1:, -1], reference[-1])
    volume = 0.0
    for count, (bottom, top) in enumerate(zip(ordered[:, -1], tops, strict=True), start=1):
        if top > bottom:
            volume += float(top - bottom) * hypervolume(ordered[:count, :-1], reference[:-1])
    return volume


def knee(points: Points) -> int:
    """Row of the front that lies furthest below the line through its extremes, objectives scaled to [0, 1].

    The knee of Das (1999) for two objectives; with more, the row nearest to the ideal point. Where no row lies below
    that line, as with two rows, it is the extreme that is best in the first objective.

    Raises:
        ValueError: where `points [n, m]` is empty.
    """
    if len(points) == 0:
        raise ValueError("an empty front has no knee")
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = (points - low) / span
    distance = scaled.sum(axis=1) if points.shape[1] <= 2 else np.linalg.norm(scaled, axis=1)
    tied = np.flatnonzero(distance <= distance.min() + 1e-9)
    return int(tied[np.argmin(scaled[tied, 0])])
