"""Fronts and hypervolume. Every array here is to be minimised: `[points, objectives]`, finite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Which rows no other row dominates (is nowhere worse and somewhere better); equal rows stay together.

    `points [n, m]` -> `[n]`. Sorts once, then compares each row with the front so far: O(n log n + n·f·m).
    """
    n = len(points)
    keep = np.zeros(n, dtype=bool)
    front = np.empty((0, points.shape[1]))
    for index in np.lexsort(points.T[::-1]):
        row = points[index]
        if not np.any(np.all(front <= row, axis=1) & np.any(front < row, axis=1)):
            keep[index] = True
            front = np.vstack([front, row])
    return keep


def layers(points: Points) -> NDArray[np.int_]:
    """0 for the front, 1 for the front of the rest, and so on; `points [n, m]` -> `[n]`."""
    found, left, depth = np.zeros(len(points), dtype=int), np.arange(len(points)), 0
    while len(left):
        front = non_dominated(points[left])
        found[left[front]] = depth
        left, depth = left[~front], depth + 1
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

    The knee of Das (1999) for two objectives; with more, the row nearest to the ideal point. Where a front has one
    or two rows, the one with the smaller sum of scaled values.

    Raises:
        ValueError: where `points [n, m]` is empty.
    """
    if len(points) == 0:
        raise ValueError("an empty front has no knee")
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = (points - low) / span
    distance = scaled.sum(axis=1) if points.shape[1] <= 2 else np.linalg.norm(scaled, axis=1)
    return int(np.argmin(distance))
