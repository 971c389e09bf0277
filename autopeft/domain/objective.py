"""What a search optimises: pure functions of `Measurements`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from autopeft.domain.measurements import Measurements


class Direction(StrEnum):
    """Which way is better."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


class Unit(StrEnum):
    """Unit of an objective's value; decides how it is printed and whether its axis is logarithmic."""

    FRACTION = "fraction"
    CORRELATION = "correlation"
    BYTES = "bytes"
    SECONDS = "seconds"
    COUNT = "count"
    NUMBER = "number"
    """Without a unit of its own and without bounds, as a loss."""


@dataclass(frozen=True)
class Objective:
    """A named score of a trial.

    `score` returns NaN where the trial lacks the measurement; such a trial is invalid.
    """

    name: str
    direction: Direction
    unit: Unit
    summary: str
    """One line for a person who reads a table header."""
    score: Callable[[Measurements], float]
    worst: float | None = None
    """A value no useful trial falls behind (0 for an accuracy); the hypervolume's reference where given."""
    quality: bool | None = None
    """Whether it says how good the predictions are, as a loss to minimise does; None: where it is to be maximised."""

    @property
    def is_quality(self) -> bool:
        """Whether `most-accurate` and the reports may go by it."""
        return self.direction is Direction.MAXIMIZE if self.quality is None else self.quality

    @property
    def sign(self) -> float:
        """Factor that turns the value into one to minimise."""
        return -1.0 if self.direction is Direction.MAXIMIZE else 1.0

    def __call__(self, measurements: Measurements) -> float:
        return float(self.score(measurements))


def metric_score(name: str) -> Callable[[Measurements], float]:
    """A score that reads one validation metric."""

    def score(measurements: Measurements) -> float:
        return measurements.quality.get(name, math.nan)

    return score


def or_nan(value: float | int | None) -> float:
    """`value` as float, NaN where it was not measured."""
    return math.nan if value is None else float(value)
