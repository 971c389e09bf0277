"""Which values the parameters have where an insertion exists, and whether two can exist together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopeft.domain.candidate import Setting
from autopeft.domain.space import ChoiceDomain, Condition, Domain, IntDomain
from autopeft.spaces.file import InsertionTemplate, SearchSpaceFile, Treatment, Values
from autopeft.spaces.values import same

Assignment = Mapping[str, tuple[Setting, ...]]
"""Parameters with the values that each may have; one that is not named may have any, or not exist."""
_MOST_LISTED = 4096
"""Whole numbers of a range that are listed one by one."""


def conditions(when: Mapping[str, Values]) -> tuple[Condition, ...]:
    """Conditions as a file writes them, one by one."""
    return tuple(Condition(parameter=parent, values=values) for parent, values in when.items())


def among(values: Sequence[Setting], wanted: Sequence[Setting]) -> tuple[Setting, ...]:
    """Those of `values` that are in `wanted`."""
    return tuple(value for value in values if any(same(value, one) for one in wanted))


def outside(values: Sequence[Setting], refused: Sequence[Setting]) -> tuple[Setting, ...]:
    """Those of `values` that are not in `refused`."""
    return tuple(value for value in values if not any(same(value, one) for one in refused))


def listed(domain: Domain | None) -> tuple[Setting, ...] | None:
    """The values of a domain, None where they are too many to list."""
    if isinstance(domain, ChoiceDomain):
        return domain.values
    if isinstance(domain, IntDomain) and domain.high - domain.low < _MOST_LISTED:
        return tuple(range(domain.low, domain.high + 1))
    return None


def assignment(
    space: SearchSpaceFile, template: InsertionTemplate | Treatment, domains: Mapping[str, Domain]
) -> dict[str, tuple[Setting, ...]]:
    """The values that conditions leave to the parameters wherever the insertion or treatment exists."""
    found: dict[str, tuple[Setting, ...]] = {}

    def require(when: Mapping[str, Values]) -> None:
        for parent, values in when.items():
            known = found.get(parent, values)
            found[parent] = among(known, values)
            written = space.parameters.get(parent.partition(".")[0])
            if written is not None:
                require(written.when)

    require(template.when)
    for parent, values in template.unless.items():
        written = space.parameters.get(parent)
        every = found.get(parent, listed(domains.get(parent)))
        # A parameter that does not exist refuses nothing.
        if every is not None and (parent in found or (written is not None and not written.when)):
            found[parent] = outside(every, values)
    return found


def together(one: Assignment, other: Assignment) -> bool:
    """Whether some values of the parameters suit both."""
    return all(among(values, other[name]) for name, values in one.items() if name in other)
