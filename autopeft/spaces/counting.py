"""How many different settings of conditional parameters there are."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.domain.candidate import Setting
from autopeft.domain.space import ChoiceDomain, IntDomain, Parameter


def size(parameters: Sequence[Parameter]) -> int | None:
    """Exact number of settings of the active parameters; None where some setting has a continuous parameter.

    Only parameters that a condition asks for are enumerated; all others are multiplied.
    """
    parents = {condition.parameter for parameter in parameters for condition in parameter.when}
    return _count(parameters, 0, parents, {})


def _count(parameters: Sequence[Parameter], index: int, parents: set[str], chosen: dict[str, Setting]) -> int | None:
    factor = 1
    for place in range(index, len(parameters)):
        parameter = parameters[place]
        if not parameter.active(chosen):
            continue
        if parameter.name not in parents:
            own = parameter.domain.size()
            if own is None:
                return None
            factor *= own
            continue
        total = 0
        for value in _values(parameter):
            rest = _count(parameters, place + 1, parents, {**chosen, parameter.name: value})
            if rest is None:
                return None
            total += rest
        return factor * total
    return factor


def _values(parameter: Parameter) -> Sequence[Setting]:
    domain = parameter.domain
    if isinstance(domain, ChoiceDomain):
        return domain.values
    if isinstance(domain, IntDomain):
        return range(domain.low, domain.high + 1)
    raise ValueError(f"a condition asks for the continuous parameter {parameter.name}")
