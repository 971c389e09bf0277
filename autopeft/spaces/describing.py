"""A search space as the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.spaces.bound import BoundSpace
from autopeft.spaces.conditions import conditions
from autopeft.spaces.file import (
    FileParameter,
    LayersParameter,
    LearningRateParameter,
    MethodsParameter,
    ModulesParameter,
    SearchSpaceFile,
    SizesParameter,
)
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
        domains = {one.name: one.domain for one in space.parameters}
        return [
            ParameterRow(one.name, one.domain.kind, domain_text(one.domain), when_text(one.when, domains), one.summary)
            for one in space.parameters
        ] + _treatments(space.file)
    return [
        ParameterRow(name, one.kind, _values(one), when_text(conditions(one.when)), one.summary)
        for name, one in space.parameters.items()
    ] + _treatments(space)


def _treatments(space: SearchSpaceFile) -> list[ParameterRow]:
    """Pruning and policy of the candidate, of which the parameters tell only what they choose."""
    return [
        ParameterRow(
            f"candidate.{key}",
            key,
            one.chosen,
            when_text(conditions(one.when)),
            ", ".join(f"{name} {value}" for name, value in one.settings.items()),
        )
        for key, one in space.candidate.treatments().items()
    ]


def _values(parameter: FileParameter) -> str:
    """What a parameter may be, as far as it can be said without a model."""
    match parameter:
        case LayersParameter(modes=("bits",)):
            return "a switch for each layer"
        case LayersParameter():
            most = "all" if parameter.at_most is None else str(parameter.at_most)
            return f"{' or '.join(parameter.modes)}, {parameter.at_least} to {most} layers"
        case ModulesParameter():
            return ", ".join(parameter.sets)
        case SizesParameter():
            absent = "0, " if parameter.absent else ""
            one = "1, " if parameter.one else ""
            return f"{absent}{one}{parameter.of} / {2**parameter.halvings} to {parameter.of} in halves"
        case MethodsParameter():
            methods = "all that fit" if parameter.among == "all" else ", ".join(parameter.among)
            return f"{methods}, each with its knob"
        case LearningRateParameter():
            return f"0 to 1 of the usual range of '{parameter.of}'"
        case _:
            return domain_text(parameter.domain())
