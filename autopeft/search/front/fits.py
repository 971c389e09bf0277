"""Surrogates without fitting hyper-parameters at every question: they change little from one trial to the next."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from autopeft.search.front.surrogate import Hyper, Posterior, Prior, condition, most_likely

Array = NDArray[np.float64]

_GROWTH = 1.12
"""Hyper-parameters are fitted anew when there are so many times the observations."""
_EVERY = 16
"""Up to so many observations, every one of them counts."""
_REMEMBERED = 64


class Fits:
    """Posteriors under hyper-parameters that were fitted to the first observations, at least 89 % of them.

    How many are fitted to follows from how many there are alone, and what was fitted is remembered by its data. So a
    posterior depends on the observations and not on the questions before: a resumed search goes on with the same.
    """

    def __init__(self) -> None:
        self._found: dict[bytes, Hyper] = {}

    def posterior(
        self,
        inputs: Array,
        values: Array,
        groups: NDArray[np.int_],
        prior: Prior,
        variances: Array | None = None,
        *,
        exact: int | None = None,
    ) -> Posterior:
        """As `surrogate.fit`; the first `exact` observations (all, if None) and the others are counted apart."""
        exact = len(values) if exact is None else exact
        some = np.r_[: share(exact), exact : exact + share(len(values) - exact)]
        part = None if variances is None else variances[some]
        key = _digest(inputs[some], values[some], groups, part, prior)
        hyper = self._found.pop(key, None) or most_likely(inputs[some], values[some], groups, prior, part)
        self._found[key] = hyper  # the youngest at the end
        while len(self._found) > _REMEMBERED:
            del self._found[next(iter(self._found))]
        return condition(hyper, inputs, values, groups, prior, variances)


def share(count: int) -> int:
    """How many of `count` observations hyper-parameters are fitted to: the last of a geometric row."""
    if count <= _EVERY:
        return count
    steps = math.floor(math.log(count / _EVERY) / math.log(_GROWTH) + 1e-9)
    return min(count, math.ceil(_EVERY * _GROWTH**steps - 1e-9))


def _digest(inputs: Array, values: Array, groups: NDArray[np.int_], variances: Array | None, prior: Prior) -> bytes:
    found = hashlib.sha256(repr((inputs.shape, prior)).encode())
    for part in (inputs, values, groups, np.zeros(0) if variances is None else variances):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.digest()
