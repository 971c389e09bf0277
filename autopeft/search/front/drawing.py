"""Values of single parameters: draws, small changes and corners, for any Optuna distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

_STEP = 0.15
"""Standard deviation of a small change, as a share of the range."""
_REDRAWN = 0.25
"""Share of changes that draw afresh."""


def draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A value, uniform over the range or over its logarithms."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    return _at(distribution, float(rng.random()))


def corner(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """One end of the range; any choice."""
    if isinstance(distribution, CategoricalDistribution):
        return draw(distribution, rng)
    return _at(distribution, float(rng.integers(2)))


def change(distribution: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    """Another value: mostly a neighbour, sometimes any; another choice. The same where there is no other."""
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice is not value and choice != value]
        return others[int(rng.integers(len(others)))] if others else value
    if distribution.single():
        return value
    if rng.random() < _REDRAWN:
        return draw(distribution, rng)
    moved = value_near(distribution, value, _STEP * float(rng.normal()))
    if moved != value or distribution.step is None:
        return moved
    up = value < distribution.high and (value == distribution.low or rng.random() < 0.5)
    return value + distribution.step if up else value - distribution.step


def value_near(distribution: FloatDistribution | IntDistribution, value: float, away: float) -> int | float:
    """The value that lies `away` from another, as a share of the range; what would leave the range is reflected."""
    low, high = _ends(distribution)
    place = (_scaled(distribution, value) - low) / (high - low) + away
    return _at(distribution, abs(place) if place < 1 else 2.0 - place)


def _at(distribution: FloatDistribution | IntDistribution, place: float) -> int | float:
    """The value at a place from 0 to 1; whole numbers get equal shares of the range."""
    low, high = _ends(distribution)
    number = low + min(1.0, max(0.0, place)) * (high - low)
    if distribution.log:
        number = math.exp(number)
    if distribution.step is not None:
        steps = math.floor((number - distribution.low) / distribution.step + 0.5)
        number = distribution.low + steps * distribution.step
    number = min(distribution.high, max(distribution.low, number))
    return round(number) if isinstance(distribution, IntDistribution) else float(number)


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Low and high, half a step further out on each side where there are steps, on the scale that is drawn from."""
    half = 0.5 * distribution.step if distribution.step is not None else 0.0
    low, high = distribution.low - half, distribution.high + half
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def _scaled(distribution: FloatDistribution | IntDistribution, value: float) -> float:
    return math.log(value) if distribution.log else float(value)
