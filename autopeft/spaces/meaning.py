"""What a search space means, before any model is known: references, conditions, bounds, names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from autopeft.domain.errors import Problem, unknown
from autopeft.domain.space import ChoiceDomain, IntDomain
from autopeft.spaces.file import (
    KINDS,
    ROLE_NAMES,
    ChoiceParameter,
    FileParameter,
    FloatParameter,
    InsertionTemplate,
    IntParameter,
    LayersParameter,
    LearningRateParameter,
    MethodsParameter,
    ModulesParameter,
    SearchSpaceFile,
    SizesParameter,
    Treatment,
    Values,
    names_of_methods,
    reference,
)
from autopeft.spaces.source import Place
from autopeft.spaces.values import contains, domain_text

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SCALARS = (IntParameter, FloatParameter, ChoiceParameter)
_WIDEST = 2**20
"""What a ladder of widths may reach, as far as it can be said without a model."""


def of_meaning(space: SearchSpaceFile) -> list[Problem]:
    """What is wrong with a space of the right form, whatever the model."""
    problems: list[Problem] = []
    above: dict[str, FileParameter] = {}
    for name, parameter in space.parameters.items():
        where = space.where("parameters", name)
        if not _NAME.fullmatch(name):
            problems.append(Problem(where, f"'{name}' is no name", "letters, digits and _, a letter first"))
        problems += _of_parameter(space, name, parameter)
        if parameter.otherwise is not None and not parameter.when:
            problems.append(
                Problem(where, "has `otherwise` but no `when`", "", "Remove it, or say when the parameter exists.")
            )
        problems += _of_conditions(space, ("parameters", name, "when"), parameter.when, above)
        above[name] = parameter
    for index, insertion in enumerate(space.candidate.insertions):
        problems += _of_insertion(space, index, insertion)
    for key, treatment in space.candidate.treatments().items():
        problems += _of_treatment(space, key, treatment)
    rate, most = space.candidate.learning_rate, len(space.candidate.insertions)
    problems += _of_reference(space, ("candidate", "learning_rate"), rate, (*_SCALARS, LearningRateParameter), {})
    if reference(rate) is None and (isinstance(rate, bool | str) or rate <= 0):
        where = space.where("candidate", "learning_rate")
        problems.append(Problem(where, f"{shown(rate)} is no learning rate", "a number above 0, or $name"))
    if space.candidate.at_least > most:
        where = space.where("candidate", "at_least")
        problems.append(Problem(where, f"{space.candidate.at_least} insertions are asked for", f"0 to {most}"))
    return problems + _of_unused(space)


def _of_parameter(space: SearchSpaceFile, name: str, parameter: FileParameter) -> list[Problem]:
    """Bounds and names inside one parameter."""
    where = space.where("parameters", name)
    match parameter:
        case IntParameter() | FloatParameter() | ChoiceParameter():
            try:
                parameter.domain()
            except ValidationError as error:
                return [Problem(where, error.errors()[0]["msg"].removeprefix("Value error, "))]
        case ModulesParameter():
            return _of_sets(space, name, parameter)
        case LayersParameter(at_most=int(most), at_least=least) if least > most:
            return [Problem(where, f"at_least {least} is above at_most {most}")]
        case MethodsParameter() if name not in names_of_methods(space):
            return [Problem(where, "no insertion takes its method from it", "", f"Write `method: ${name}` in one.")]
        case LearningRateParameter():
            chosen = space.parameters.get(parameter.of)
            where = space.where("parameters", name, "of")
            if parameter.of not in names_of_methods(space):
                return [_of_no_method(space, where, parameter.of)]
            if chosen is not None and chosen.when:
                return [Problem(where, f"'{parameter.of}' does not always exist", "a parameter without `when`")]
    return []


def _of_no_method(space: SearchSpaceFile, where: str, name: str) -> Problem:
    """The problem of a learning rate that follows a parameter which is not there, or is of another kind."""
    allowed = names_of_methods(space)
    if name not in space.parameters:
        return unknown(where, name, allowed, "It has to choose a method.")
    step = "Name one that does." if allowed else "Write `kind: methods` for one, and `method: $name` in an insertion."
    return Problem(where, f"'{name}' chooses no method", ", ".join(sorted(allowed)), step)


def _of_sets(space: SearchSpaceFile, name: str, parameter: ModulesParameter) -> list[Problem]:
    problems = []
    for label, roles in parameter.sets.items():
        place = ("parameters", name, "sets", label)
        if roles == "all":
            continue
        problems += [unknown(space.where(*place), role, ROLE_NAMES) for role in roles if role not in ROLE_NAMES]
        if not roles:
            problems.append(Problem(space.where(*place), "names no module", "all, or a list of roles"))
    if parameter.otherwise is not None and parameter.otherwise not in parameter.sets:
        problems.append(unknown(space.where("parameters", name, "otherwise"), parameter.otherwise, parameter.sets))
    return problems


def _of_conditions(
    space: SearchSpaceFile, place: Place, when: Mapping[str, Values], above: Mapping[str, FileParameter]
) -> list[Problem]:
    problems = []
    known: dict[str, ChoiceDomain | IntDomain | None] = {}
    for name, parameter in above.items():
        known |= condition_values(name, parameter)
    for parent, values in when.items():
        where = space.where(*place, parent)
        if parent not in known:
            later = parent in space.parameters and parent not in above
            step = "Write the parameter it depends on above it." if later else ""
            problems.append(unknown(where, parent, known, step))
            continue
        domain = known[parent]
        problems += [
            Problem(where, f"'{parent}' is never {value}", domain_text(domain))
            for value in values
            if domain is not None and not contains(domain, value)
        ]
    return problems


def condition_values(name: str, parameter: FileParameter) -> dict[str, ChoiceDomain | IntDomain | None]:
    """What a condition may ask of this parameter: the names it may use and their values; a real number gives none.

    None stands for values that only a model decides.
    """
    match parameter:
        case ModulesParameter():
            return {name: ChoiceDomain(values=tuple(parameter.sets))}
        case LayersParameter():
            modes = tuple(dict.fromkeys(parameter.modes))
            return {f"{name}.mode": ChoiceDomain(values=modes)} if len(modes) > 1 else {}
        case MethodsParameter():
            named = dict.fromkeys(parameter.among) if isinstance(parameter.among, tuple) else ()
            return {name: ChoiceDomain(values=tuple(named)) if named else None}
        case SizesParameter():
            return {name: IntDomain(low=0 if parameter.absent else 1, high=_WIDEST)}
        case IntParameter() | ChoiceParameter():
            try:
                return {name: parameter.domain()}
            except ValidationError:
                return {}
    return {}


def _of_insertion(space: SearchSpaceFile, index: int, insertion: InsertionTemplate) -> list[Problem]:
    place: Place = ("candidate", "insertions", index)
    when = insertion.when
    problems = _of_conditions(space, (*place, "when"), when, space.parameters)
    problems += _of_conditions(space, (*place, "unless"), insertion.unless, space.parameters)
    problems += _of_method(space, place, insertion)
    for key, value, kinds, words in (
        ("layers", insertion.layers, (LayersParameter,), ("all",)),
        ("modules", insertion.modules, (ModulesParameter,), ("default", "all")),
    ):
        problems += _of_reference(space, (*place, key), value, kinds, when)
        if isinstance(value, str) and value not in words and reference(value) is None:
            named = value in space.parameters
            step = f"Write ${value} for the parameter's value." if named else ""
            allowed = ", ".join((*words, "$name", "a list"))
            problems.append(Problem(space.where(*place, key), f"'{value}' is not understood", allowed, step))
    parts = insertion.parts()
    if parts is not None and not 1 <= parts[0] <= parts[1]:
        problems.append(
            Problem(space.where(*place, "part"), f"{insertion.part} is no part of a whole", "1/3, 2/3, 3/3 or the like")
        )
    if isinstance(insertion.modules, tuple):
        where = space.where(*place, "modules")
        problems += [unknown(where, role, ROLE_NAMES) for role in insertion.modules if role not in ROLE_NAMES]
    for setting, given in insertion.settings.items():
        problems += _of_reference(space, (*place, "settings", setting), given, (*_SCALARS, SizesParameter), when)
    return problems


def _of_method(space: SearchSpaceFile, place: Place, insertion: InsertionTemplate) -> list[Problem]:
    found = _of_reference(
        space, (*place, "method"), insertion.method, (ChoiceParameter, MethodsParameter), insertion.when
    )
    name = reference(insertion.method)
    parameter = space.parameters.get(name) if name is not None else None
    if isinstance(parameter, ChoiceParameter):
        where = space.where("parameters", str(name), "values")
        found += [
            Problem(where, f"{value} is no name of a method")
            for value in parameter.values
            if not isinstance(value, str)
        ]
    return found


def _of_treatment(space: SearchSpaceFile, key: str, treatment: Treatment) -> list[Problem]:
    """Whether a setting has a value wherever it is needed depends on the policy or criterion: binding looks at it."""
    place: Place = ("candidate", key)
    problems = _of_conditions(space, (*place, "when"), treatment.when, space.parameters)
    problems += _of_conditions(space, (*place, "unless"), treatment.unless, space.parameters)
    name = treatment.chosen
    problems += _of_reference(space, (*place, treatment.names), name, (ChoiceParameter,), treatment.when)
    parameter = space.parameters.get(reference(name) or "")
    if isinstance(parameter, ChoiceParameter):
        where = space.where("parameters", name[1:], "values")
        problems += [
            Problem(where, f"{value} is no name of a {key}", "", f"Quote it, or write `{treatment.off}` for none.")
            for value in parameter.values
            if not isinstance(value, str)
        ]
    for setting, given in treatment.settings.items():
        target = space.parameters.get(reference(given) or "")
        exists = {} if target is None else target.when
        problems += _of_reference(space, (*place, "settings", setting), given, _SCALARS, exists)
    return problems


def _of_reference(
    space: SearchSpaceFile, place: Place, value: object, kinds: tuple[type, ...], given: Mapping[str, Values]
) -> list[Problem]:
    """Whether `$name` names a parameter of the right kind that has a value wherever it is used."""
    name = reference(value)
    if name is None:
        return []
    where = space.where(*place)
    parameter = space.parameters.get(name)
    if parameter is None:
        return [unknown(where, name, space.parameters)]
    if not isinstance(parameter, kinds):
        wanted = " or ".join(kind for kind, model in KINDS.items() if model in kinds)
        return [Problem(where, f"'{name}' is of kind {parameter.kind}", f"a parameter of kind {wanted}")]
    implied = all(parent in given and set(given[parent]) <= set(values) for parent, values in parameter.when.items())
    if parameter.otherwise is None and not implied:
        return [
            Problem(
                where,
                f"'{name}' has no value where its `when` does not hold",
                "",
                f"Give it `otherwise: VALUE` at {space.where('parameters', name)}, or what uses it the same `when`.",
            )
        ]
    return []


def _of_unused(space: SearchSpaceFile) -> list[Problem]:
    """A parameter that nothing reads would make the search train one candidate many times."""
    used = {reference(space.candidate.learning_rate)}
    conditional: list[Mapping[str, Values]] = [parameter.when for parameter in space.parameters.values()]
    for insertion in space.candidate.insertions:
        taken = (insertion.method, insertion.layers, insertion.modules, *insertion.settings.values())
        used |= {reference(value) for value in taken}
        conditional += [insertion.when, insertion.unless]
    for treatment in space.candidate.treatments().values():
        used |= {reference(value) for value in (treatment.chosen, *treatment.settings.values())}
        conditional += [treatment.when, treatment.unless]
    used |= {parent.partition(".")[0] for when in conditional for parent in when}
    return [
        Problem(space.where("parameters", name), "nothing uses this parameter", "", f"Write ${name} under candidate.")
        for name, parameter in space.parameters.items()
        if name not in used and not isinstance(parameter, MethodsParameter)
    ]


def shown(value: Any) -> str:
    """A value of the file, cut to fit into a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
