"""First guesses of a space: checked when it is read, and as points of it once it is bound to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from autopeft.domain.candidate import Setting
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.space import FloatDomain, Parameter
from autopeft.domain.start import FIRST_GUESS, StartingPoint
from autopeft.spaces.bound import BoundSpace, Unit
from autopeft.spaces.expressing import chosen_layers, nearest
from autopeft.spaces.file import (
    ChoiceParameter,
    FileParameter,
    FirstGuess,
    FloatParameter,
    IntParameter,
    LayersParameter,
    LearningRateParameter,
    MethodsParameter,
    ModulesParameter,
    SearchSpaceFile,
    SizesParameter,
)
from autopeft.spaces.values import contains, domain_text, same

_WIDTH = re.compile(r"hidden_size(?:/([1-9][0-9]*))?")
_PLACE = FloatDomain(low=0.0, high=1.0)


def of_guesses(space: SearchSpaceFile) -> list[Problem]:
    """What is wrong with the first guesses of a space, whatever the model."""
    problems: list[Problem] = []
    for index, guess in enumerate(space.first):
        where = space.where("first", index, "values")
        problems += [unknown(where, name, space.parameters) for name in guess.values if name not in space.parameters]
        exists: dict[str, Setting] = {}
        for name, parameter in space.parameters.items():
            needed = all(
                parent not in space.parameters or any(same(exists[parent], value) for value in values)
                if parent in exists or parent not in space.parameters
                else False
                for parent, values in parameter.when.items()
            )
            if name in guess.values and not needed:
                found = f"'{name}' has a value and does not exist at this point"
                problems.append(Problem(space.where("first", index, "values", name), found, "", "Leave it out."))
            elif name in guess.values:
                exists[name] = guess.values[name]
                problems += _of_value(space, index, name, parameter, guess.values[name])
            elif needed:
                problems.append(Problem(where, f"'{name}' has no value", "", "Give it one."))
        if guess.knobs and not any(isinstance(one, MethodsParameter) for one in space.parameters.values()):
            step = "Give the parameter of the knob a value."
            problems.append(Problem(space.where("first", index, "knobs"), "no parameter chooses methods", "", step))
    return problems


def _of_value(space: SearchSpaceFile, index: int, name: str, parameter: FileParameter, value: Setting) -> list[Problem]:
    allowed = ""
    match parameter:
        case IntParameter() | FloatParameter() | ChoiceParameter():
            domain = parameter.domain()
            allowed = "" if contains(domain, value) else domain_text(domain)
        case ModulesParameter():
            allowed = "" if value in parameter.sets else ", ".join(parameter.sets)
        case LayersParameter():
            counted = isinstance(value, int) and not isinstance(value, bool) and value >= parameter.at_least
            allowed = "" if value == "all" or counted else f"all, or how many of the top, from {parameter.at_least} on"
        case SizesParameter():
            counted = isinstance(value, int) and not isinstance(value, bool) and value >= (0 if parameter.absent else 1)
            named = isinstance(value, str) and _WIDTH.fullmatch(value)
            allowed = "" if counted or named else "a whole number, or hidden_size/8 or the like"
        case LearningRateParameter():
            allowed = "" if contains(_PLACE, value) else domain_text(_PLACE)
        case MethodsParameter():
            known = parameter.among if isinstance(parameter.among, tuple) else ()
            if not isinstance(value, str) or (known and value not in known):
                allowed = ", ".join(known) or "the name of a method"
    return [Problem(space.where("first", index, "values", name), f"{value!r} is outside", allowed)] if allowed else []


def guesses(space: BoundSpace, width: int) -> tuple[list[StartingPoint], list[str]]:
    """The first guesses as points of a bound space, and a sentence on each that the model cannot have.

    `width` is the model's. Sizes are moved to the nearest step of their ladder.
    """
    found, notes = [], []
    for guess in space.file.first:
        try:
            values = _bound(guess, space, width)
            candidate = space.resolve(values)
        except UserError as error:
            notes.append(f"The first guess '{guess.name}' is left out: {error.problems[0]}.")
            continue
        if candidate is not None:
            found.append(StartingPoint(parameters=values, candidate=candidate, origin=FIRST_GUESS))
    return found, notes


def _bound(guess: FirstGuess, space: BoundSpace, width: int) -> dict[str, Setting]:
    values: dict[str, Setting] = {}
    for unit in space.units:
        if not all(when.parameter in values and values[when.parameter] in when.values for when in unit.when):
            continue
        if unit.layers is not None:
            values |= _layers(unit, guess.values[unit.name])
            continue
        (parameter,) = unit.parameters
        values[parameter.name] = _value(guess, space, unit, parameter, width, values)
    return values


def _layers(unit: Unit, wanted: Setting) -> Mapping[str, Setting]:
    choice = unit.layers
    assert choice is not None
    count = choice.depth if wanted == "all" else int(wanted)
    ways = chosen_layers(choice, range(max(0, choice.depth - count), choice.depth)) if count <= choice.depth else []
    if not ways:
        most = choice.depth if "bits" in choice.spec.modes else choice.most
        raise UserError(Problem(unit.name, f"it asks for {wanted} layers", f"{choice.spec.at_least} to {most}"))
    return ways[0]


def _value(
    guess: FirstGuess,
    space: BoundSpace,
    unit: Unit,
    parameter: Parameter,
    width: int,
    values: Mapping[str, Setting],
) -> Setting:
    domain, written = parameter.domain, space.file.parameters.get(unit.name)
    if written is None:  # the knob of a method
        method = str(next(values[when.parameter] for when in reversed(unit.when)))
        knob = unit.name.rpartition(".")[2]
        facts = next(one.methods[method] for one in space.insertions if method in one.methods).facts
        wanted = guess.knobs.get(method, facts.defaults.get(knob, 0))
    else:
        wanted = guess.values[unit.name]
    if isinstance(written, SizesParameter):
        wanted = _size(wanted, width)
    sized = isinstance(written, SizesParameter) or written is None
    found = nearest(domain, wanted) if sized else wanted
    if found is None or not contains(domain, found):
        raise UserError(Problem(parameter.name, f"{wanted} is not possible on this model", domain_text(domain)))
    return found


def _size(wanted: Setting, width: int) -> Setting:
    match = _WIDTH.fullmatch(wanted) if isinstance(wanted, str) else None
    return wanted if match is None else max(1, width // int(match.group(1) or 1))


__all__ = ["guesses", "of_guesses"]
