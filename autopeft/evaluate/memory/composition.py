"""Putting a step's memory together from blocks of known kinds.

Memory adds up over blocks: what a block keeps for its backward pass, what it needs while it runs, and what is given up
when its gradients are through, depend on its kind (what was put in, what trains, whether a gradient passes) and not on
its neighbours. So each kind is traced once, in a model that is as deep as there are kinds, and any order and number of
them is a sum. In the sizes of a method (ranks, bottlenecks, tokens) every allocation is affine; where a third size
shows that it is not, each size is traced.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Deltas = NDArray[np.float64]
Sizes = tuple[float, ...]
AFFINE = 1e-3
"""A size is taken to be affine where a third one is foretold this well, relative to the largest number of its kind."""


@dataclass(frozen=True)
class Piece:
    """What was traced of one kind: arrays of bytes, in an order that every trace of the kind has."""

    arrays: tuple[Deltas, ...]

    def weighted(self, weight: float) -> Piece:
        """Each number times a weight."""
        return Piece(tuple(weight * one for one in self.arrays))

    def plus(self, other: Piece) -> Piece:
        """The sum, number by number."""
        return Piece(tuple(one + two for one, two in zip(self.arrays, other.arrays, strict=True)))

    def like(self, other: Piece) -> bool:
        """Whether the two have the same operations."""
        return [one.shape for one in self.arrays] == [two.shape for two in other.arrays]

    def differs(self, other: Piece) -> float:
        """The largest difference of a peak or a sum, relative to the largest of them."""
        mine = np.array([(one.sum(), np.cumsum(one).max(initial=0.0)) for one in self.arrays])
        others = np.array([(one.sum(), np.cumsum(one).max(initial=0.0)) for one in other.arrays])
        return float(np.abs(mine - others).max() / max(1.0, np.abs(others).max()))


@dataclass
class Family:
    """The traces of one kind at the sizes that were met."""

    samples: dict[Sizes, Piece] = field(default_factory=dict)
    verified: bool = False
    """Whether a trace agreed with what the others foretold."""
    exact: bool = False
    """Whether one did not, so that every size has to be traced."""

    def add(self, sizes: Sizes, piece: Piece) -> None:
        """Take in a trace."""
        if sizes in self.samples:
            return
        foretold = None if self.exact else self._between(sizes)
        if foretold is not None:
            agrees = foretold.like(piece) and foretold.differs(piece) <= AFFINE
            self.verified |= agrees
            self.exact |= not agrees
        self.samples[sizes] = piece

    def at(self, sizes: Sizes) -> Piece | None:
        """Traced at these sizes, or between others; None where it has to be traced."""
        found = self.samples.get(sizes)
        if found is None and self.verified and not self.exact:
            found = self._between(sizes)
        return found

    def _between(self, sizes: Sizes) -> Piece | None:
        """By weights that sum to 1 and make these sizes of those that were traced; None where there are none."""
        known = list(self.samples)
        if not known or not all(self.samples[known[0]].like(self.samples[one]) for one in known):
            return None
        system = np.array([[1.0, *one] for one in known]).T
        wanted = np.array([1.0, *sizes])
        weights, *_ = np.linalg.lstsq(system, wanted, rcond=None)
        if not np.allclose(system @ weights, wanted, rtol=1e-9, atol=1e-6):
            return None
        total = self.samples[known[0]].weighted(float(weights[0]))
        for one, weight in zip(known[1:], weights[1:], strict=True):
            total = total.plus(self.samples[one].weighted(float(weight)))
        return total


class Library:
    """Every kind that was traced."""

    def __init__(self) -> None:
        self._families: dict[Hashable, Family] = {}
        self._found: dict[tuple[Hashable, Sizes], Piece] = {}

    def add(self, kind: Hashable, sizes: Sizes, piece: Piece) -> None:
        """Take in a trace of a kind."""
        self._families.setdefault(kind, Family()).add(sizes, piece)

    def at(self, kind: Hashable, sizes: Sizes) -> Piece | None:
        """What is known of a kind at these sizes."""
        key = (kind, sizes)
        if key not in self._found:
            family = self._families.get(kind)
            found = family.at(sizes) if family is not None else None
            if found is None:
                return None
            self._found[key] = found
        return self._found[key]
