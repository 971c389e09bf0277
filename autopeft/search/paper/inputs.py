"""Points as rows from 0 to 1, one place per parameter: what the surrogates of the paper look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

Array = NDArray[np.float64]


class Inputs:
    """The columns of a space.

    A number has its place in its range (of logarithms, where it is drawn so), a choice of two one column, a choice of
    more a column per value. A parameter that does not exist lies in the middle, or has no value set: whether it exists
    is said by the column of the one that it depends on.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """`distributions`: of every parameter that may exist; those of one value have no column."""
        self._distributions = {name: one for name, one in sorted(distributions.items()) if not one.single()}
        self.names = tuple(
            name if value is None else f"{name}={value}"
            for name, one in self._distributions.items()
            for value in _columns(one)
        )
        """`[d]`"""

    def rows(self, points: Sequence[Mapping[str, Any]]) -> Array:
        """`[points, d]` of their parameters."""
        return np.array([self._row(params) for params in points]).reshape(len(points), len(self.names))

    def _row(self, params: Mapping[str, Any]) -> list[float]:
        row: list[float] = []
        for name, one in self._distributions.items():
            row += _cells(one, name in params, params.get(name))
        return row


def _columns(distribution: BaseDistribution) -> Sequence[Any]:
    """The values that have columns of their own; one None where a single column says it all."""
    if isinstance(distribution, CategoricalDistribution) and len(distribution.choices) > 2:
        return distribution.choices
    return (None,)


def _cells(distribution: BaseDistribution, there: bool, value: Any) -> list[float]:
    if isinstance(distribution, CategoricalDistribution):
        chosen = int(distribution.to_internal_repr(value)) if there else -1
        if len(distribution.choices) == 2:
            return [float(chosen) if there else 0.5]
        return [float(index == chosen) for index in range(len(distribution.choices))]
    return [place(distribution, value) if there else 0.5]


def place(distribution: Any, value: float) -> float:
    """From 0 to 1, where a number lies in the range of its distribution."""
    low, high, at = float(distribution.low), float(distribution.high), float(value)
    if distribution.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return min(1.0, max(0.0, (at - low) / (high - low)))
