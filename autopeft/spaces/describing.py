"""A search space as the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.domain.space import Condition
from autopeft.spaces.binding import BoundSpace
from autopeft.spaces.file import LayersParameter, ModulesParameter, SearchSpaceFile
from autopeft.spaces.values import domain_text, when_text


@dataclass(frozen=True)
class ParameterRow:
    """One parameter for a person who reads `autopeft spaces NAME`."""

    name: str
    kind: str
    values: str
    when: str
    """Conditions in words; empty where it always exists."""
    summary: str


def describe(space: SearchSpaceFile | BoundSpace) -> list[ParameterRow]:
    """One row per parameter: as written for a file, as the sampler sees them for a bound space."""
    if isinstance(space, BoundSpace):
        return [
            ParameterRow(one.name, one.domain.kind, domain_text(one.domain), when_text(one.when), one.summary)
            for one in space.parameters
        ]
    rows = []
    for name, parameter in space.parameters.items():
        if isinstance(parameter, LayersParameter):
            most = "all" if parameter.at_most is None else str(parameter.at_most)
            values = f"{' or '.join(parameter.modes)}, {parameter.at_least} to {most} layers"
        elif isinstance(parameter, ModulesParameter):
            values = ", ".join(parameter.sets)
        else:
            values = domain_text(parameter.domain())
        conditions = tuple(Condition(parameter=parent, values=found) for parent, found in parameter.when.items())
        when = when_text(conditions)
        rows.append(ParameterRow(name, parameter.kind, values, when, parameter.summary))
    return rows
