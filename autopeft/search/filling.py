"""Configurations that fill a space evenly, in an order that does not depend on how many are taken."""

from __future__ import annotations

import math
from collections.abc import Iterator

from scipy.stats import qmc

from autopeft.domain.candidate import Candidate, Setting
from autopeft.domain.space import ChoiceDomain, Domain, IntDomain, Space

_BLOCK = 64
_LIMIT = 2**16
"""Points tried; a space with fewer candidates than are asked for has given all that it will give."""
_DIGITS = 3
"""Significant digits of a real number: what a person reads is what is trained."""


def fill(space: Space, seed: int) -> Iterator[tuple[dict[str, Setting], Candidate]]:
    """Distinct candidates with their parameters.

    A scrambled Sobol' sequence (Owen 1998) over one coordinate per parameter; coordinates of parameters that are not
    active are ignored. Choices get equal shares, numbers are uniform over their range or its logarithms.
    """
    points = qmc.Sobol(len(space.parameters), seed=seed)
    seen: set[str] = set()
    for _ in range(_LIMIT // _BLOCK):
        for point in points.random(_BLOCK):
            values: dict[str, Setting] = {}
            for place, parameter in zip(point, space.parameters, strict=True):
                if parameter.active(values):
                    values[parameter.name] = value_at(parameter.domain, float(place))
            candidate = space.resolve(values)
            if candidate is not None and candidate.digest not in seen:
                seen.add(candidate.digest)
                yield values, candidate


def value_at(domain: Domain, place: float) -> Setting:
    """The value at a place from 0 (included) to 1 (excluded) of a domain."""
    match domain:
        case ChoiceDomain():
            return domain.values[int(place * len(domain.values))]
        case IntDomain(log=True):
            low, high = math.log(domain.low - 0.5), math.log(domain.high + 0.5)
            return min(domain.high, max(domain.low, round(math.exp(low + place * (high - low)))))
        case IntDomain():
            return domain.low + int(place * (domain.high - domain.low + 1))
    if domain.log:
        found = domain.low * (domain.high / domain.low) ** place
    else:
        found = domain.low + place * (domain.high - domain.low)
    return min(domain.high, max(domain.low, float(f"{found:.{_DIGITS}g}")))
