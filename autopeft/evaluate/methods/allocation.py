"""Who gets how much of a budget of parameters, given what is sensitive: numbers only."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Entries = npt.NDArray[np.int64]
"""Flat indices into a weight `[out, in]`, ascending."""


@dataclass(frozen=True)
class Sensitive:
    """The most sensitive weights of one matrix, the most sensitive first, equal ones by their place."""

    values: npt.NDArray[np.float64]
    entries: Entries


@dataclass(frozen=True)
class Targets:
    """Where SPT puts low-rank updates, and which single weights it trains elsewhere."""

    low_rank: frozenset[int]
    """Numbers of the matrices."""
    entries: Mapping[int, Entries]
    """Of the other matrices in which anything is trained."""


def most_sensitive(values: npt.NDArray[np.float32], count: int) -> Sensitive:
    """The `count` largest of `[out, in]`, or all that are above 0 where these are fewer."""
    flat = values.reshape(-1)
    count = min(count, int(np.count_nonzero(flat)))
    if not count:
        return Sensitive(np.empty(0), np.empty(0, dtype=np.int64))
    least = np.partition(flat, flat.size - count)[flat.size - count]
    above = np.flatnonzero(flat > least)
    chosen = np.concatenate([above, np.flatnonzero(flat == least)[: count - above.size]])
    order = np.lexsort((chosen, -flat[chosen]))
    return Sensitive(flat[chosen[order]].astype(np.float64), chosen[order].astype(np.int64))


def needed(structured: int, ratio: float) -> int:
    """From so many sensitive weights on, a matrix gets a low-rank update of `structured` parameters."""
    return math.ceil(structured / ratio - 1e-9)


def targets(found: Sequence[Sensitive], structured: Sequence[int], ratio: float, budget: int) -> Targets:
    """SPT's rule at the largest tau that keeps the number of trained parameters at or below the budget.

    Of the tau most sensitive weights of all matrices, a matrix with at least `structured / ratio` gets the low-rank
    update; of the others these weights alone are trained. The cost never falls as tau rises, so that the weights can be
    gone through from the most sensitive to the first one that the budget does not allow. Equal ones go by matrix and
    place.

    Args:
        found: Per matrix the most sensitive weights, at least as many as are `needed`, or all.
        structured: Parameters of the low-rank update of each.
        ratio: SPT's alpha.
        budget: Parameters.
    """
    limits = [needed(one, ratio) for one in structured]
    matrices = np.concatenate([np.full(one.values.size, index) for index, one in enumerate(found)])
    values = np.concatenate([one.values for one in found])
    counts, spent, low_rank = [0] * len(found), 0, set()
    for matrix in matrices[np.lexsort((matrices, -values))].tolist():
        if matrix in low_rank:
            continue
        becomes = counts[matrix] + 1 >= limits[matrix]
        spent += structured[matrix] - counts[matrix] if becomes else 1
        if spent > budget:
            break
        counts[matrix] += 1
        if becomes:
            low_rank.add(matrix)
    entries = {
        index: np.sort(one.entries[: counts[index]])
        for index, one in enumerate(found)
        if counts[index] and index not in low_rank
    }
    return Targets(frozenset(low_rank), entries)


def ranks(sensitivities: Sequence[float], costs: Sequence[int], most: Sequence[int], budget: int) -> tuple[int, ...]:
    """Ranks in proportion to the sensitivities, rounded by Sainte-Laguë's divisors, at or below the budget.

    One rank after another goes to the module with the largest `sensitivity / (2 * rank + 1)`, equal ones by their
    place, as long as one is found that it does not exceed the budget with; a module without sensitivity gets none.

    Args:
        sensitivities: Of each module.
        costs: Parameters of one rank of each.
        most: Largest rank of each.
        budget: Parameters.
    """
    found = [0] * len(costs)
    waiting = [(-value, index) for index, value in enumerate(sensitivities) if value > 0 and most[index] > 0]
    heapq.heapify(waiting)
    while waiting:
        _, index = heapq.heappop(waiting)
        if costs[index] > budget:
            continue  # nor later: the budget only shrinks
        budget -= costs[index]
        found[index] += 1
        if found[index] < most[index]:
            heapq.heappush(waiting, (-sensitivities[index] / (2 * found[index] + 1), index))
    return tuple(found)
