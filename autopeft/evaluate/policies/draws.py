"""Random choices of layers that are functions of a seed and a step, on no device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stream(seed: int, step: int, purpose: int) -> np.random.Generator:
    """The random numbers of one step for one purpose; the same however often and in whatever order it is asked for."""
    return np.random.default_rng([seed, step, purpose])


def share(fraction: float, layers: int) -> int:
    """`floor(fraction * layers)`, and at least 1: with none, nothing would train."""
    # A hair more, so that 0.3 of 10 layers is 3 in floating point too.
    return max(1, int(fraction * layers + 1e-9))


def subset(
    random: np.random.Generator, layers: Sequence[int], count: int, weights: Sequence[float] | None = None
) -> tuple[int, ...]:
    """So many of the layers, drawn one after another without putting back, ascending.

    Each draw is proportional to the weights of what is left. Exponential waiting times of these rates order the layers
    just so (Efraimidis and Spirakis 2006).
    """
    waiting = random.exponential(size=len(layers))
    if weights is not None:
        waiting = waiting / np.maximum(np.asarray(weights, dtype=np.float64), np.finfo(np.float64).tiny)
    return tuple(sorted(layers[index] for index in np.argsort(waiting, kind="stable")[:count]))
