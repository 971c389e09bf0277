"""What a search begins with: candidates that are tried first, and what earlier searches saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from autopeft.domain import pareto
from autopeft.domain.candidate import Candidate, Setting

ORIGIN = "autopeft:origin"
"""Key of `Trial.sampler_state` under which the origin of a trial is kept; without it, the sampler proposed it."""
SAMPLER = "sampler"
FIRST_GUESS = "first guess"
START_WITH = "start-with"
WARM_START = "warm start of"
"""Begins the origin of a point of an earlier run's front; the name of the run follows."""
SHARE = 1 / 3
"""Most of a budget of trials that goes to points of earlier fronts and to first guesses, together."""
MOST = 6
"""The same in trials, where the budget counts none: as many as samplers would begin with at random."""


class StartingPoint(BaseModel):
    """A candidate that is tried before the sampler is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: dict[str, Setting]
    """Of the space, the active ones."""
    candidate: Candidate
    origin: str
    """`start-with`, `first guess` or `warm start of RUN`."""

    @property
    def asked_for(self) -> bool:
        """Whether a person named this very candidate: then it is tried however small the budget is."""
        return self.origin == START_WITH


class EarlierTrial(BaseModel):
    """A complete trial of an earlier run, carried over to this space."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: dict[str, Setting]
    values: dict[str, float]
    """Objectives by name, as they were measured there."""


class EarlierRun(BaseModel):
    """What an earlier run teaches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    quality: str
    """Its objective of quality, which stands for this search's own, whatever their names and scales."""
    maximised: bool
    """Whether more of it is better."""
    trials: tuple[EarlierTrial, ...]


class Start(BaseModel):
    """Everything that a search begins with. Settled when it begins: earlier runs may go on, files may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: tuple[StartingPoint, ...] = ()
    """In the order in which they are tried; distinct."""
    most: int = 0
    """How many of those that nobody asked for by name may be trained."""
    earlier: tuple[EarlierRun, ...] = ()


def most_of(trials: int | None) -> int:
    """How many points of earlier fronts and first guesses a budget of so many trials pays for."""
    return MOST if trials is None else int(trials * SHARE)


def order(points: pareto.Points) -> list[int]:
    """Indices of non-dominated points in the order in which each adds most hypervolume to those before it.

    So the beginning of the list stands for the whole front. The reference lies a tenth of the range behind the worst.

    Args:
        points: `[points, objectives]`, all to be minimised, on scales on which differences count.
    """
    if not len(points):
        return []
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    reference = np.full(points.shape[1], 1.1)
    found: list[int] = []
    left = list(range(len(points)))
    while left:
        gains = [pareto.hypervolume(scaled[[*found, index]], reference) for index in left]
        found.append(left.pop(int(np.argmax(gains))))
    return found


def merged(groups: Sequence[Sequence[StartingPoint]]) -> tuple[StartingPoint, ...]:
    """The points in order, each candidate once."""
    found: dict[str, StartingPoint] = {}
    for point in (one for group in groups for one in group):
        found.setdefault(point.candidate.digest, point)
    return tuple(found.values())
