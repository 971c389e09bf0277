"""From YAML text to a checked `SearchSpaceFile`, with every mistake in one error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from autopeft.domain.errors import Problem, UserError, unknown
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
    ModulesParameter,
    SearchSpaceFile,
    Values,
    allowed_keys,
    reference,
)
from autopeft.spaces.source import Place, Source, read
from autopeft.spaces.values import contains, domain_text

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SCALARS = (IntParameter, FloatParameter, ChoiceParameter)


def parse(text: str, origin: str) -> SearchSpaceFile:
    """The search space that this YAML text describes; `origin` names it in messages.

    Raises:
        UserError: with every mistake of the form, or, where there is none, every mistake of the meaning.
    """
    source = read(text, origin)
    problems = list(source.problems)
    space: SearchSpaceFile | None = None
    try:
        space = SearchSpaceFile.model_validate(source.values).attach(source)
    except ValidationError as error:
        problems += _of_form(error, source)
    if space is not None:
        problems += _of_meaning(space)
    if problems:
        raise UserError(*problems)
    assert space is not None
    return space


def _of_form(error: ValidationError, source: Source) -> list[Problem]:
    """One problem per place: where a value may have several types, pydantic complains once per type."""
    found: dict[Place, Problem] = {}
    for one in error.errors(include_url=False):
        place, value = _place(one["loc"], source.values, missing=one["type"] == "missing")
        if one["type"] == "too_short" and value:
            continue  # its entries were refused, each with a problem of its own
        found.setdefault(place, _problem(one["type"], one["msg"], place, value, source))
    return list(found.values())


def _problem(kind: str, message: str, place: Place, value: Any, source: Source) -> Problem:
    where = source.where(place)
    parent = _at(source.values, place[:-1])
    allowed = allowed_keys(place[:-1], parent.get("kind") if isinstance(parent, Mapping) else None)
    if kind == "extra_forbidden":
        return unknown(where, str(place[-1]), [key for key in allowed if key not in parent])
    if kind == "missing":
        return Problem(where, "is missing", "", f"Add '{place[-1]}:' there.")
    if kind == "too_short":
        return Problem(where, "is empty", "at least 1 entry")
    if isinstance(value, list | dict) and kind in ("bool_type", "int_type", "float_type", "string_type"):
        return Problem(where, f"{_shown(value)} is not one value", "a number, a text, true or false")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = value.get("kind") if isinstance(value, Mapping) else None
        if given is None:
            return Problem(where, "has no kind", ", ".join(KINDS), "For example `kind: choice`.")
        return unknown(source.where((*place, "kind")), str(given), KINDS)
    return Problem(where, f"{_shown(value)}: {message[0].lower()}{message[1:]}")


def _place(loc: tuple[str | int, ...], values: Any, missing: bool) -> tuple[Place, Any]:
    """The part of pydantic's location that stands in the file (it adds the names of union members), and its value."""
    place: list[str | int] = []
    for index, part in enumerate(loc):
        inside = (isinstance(values, Mapping) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if inside:
            values = values[part]
            place.append(part)
        elif missing and index == len(loc) - 1:
            place.append(part)
    return tuple(place), values


def _at(values: Any, place: Place) -> Any:
    for part in place:
        values = values[part]
    return values


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _of_meaning(space: SearchSpaceFile) -> list[Problem]:
    problems: list[Problem] = []
    above: dict[str, FileParameter] = {}
    for name, parameter in space.parameters.items():
        where = space.where("parameters", name)
        if not _NAME.fullmatch(name):
            problems.append(Problem(where, f"'{name}' is no name", "letters, digits and _, a letter first"))
        if not isinstance(parameter, LayersParameter | ModulesParameter):
            try:
                parameter.domain()
            except ValidationError as error:
                text = error.errors()[0]["msg"].removeprefix("Value error, ")
                problems.append(Problem(where, text))
        elif isinstance(parameter, ModulesParameter):
            problems += _of_sets(space, name, parameter)
        elif parameter.at_most is not None and parameter.at_least > parameter.at_most:
            problems.append(Problem(where, f"at_least {parameter.at_least} is above at_most {parameter.at_most}"))
        if parameter.otherwise is not None and not parameter.when:
            problems.append(
                Problem(where, "has `otherwise` but no `when`", "", "Remove it, or say when the parameter exists.")
            )
        problems += _of_conditions(space, ("parameters", name, "when"), parameter.when, above)
        above[name] = parameter
    for index, insertion in enumerate(space.candidate.insertions):
        problems += _of_insertion(space, index, insertion)
    rate = space.candidate.learning_rate
    problems += _of_reference(space, ("candidate", "learning_rate"), rate, _SCALARS, {})
    if reference(rate) is None and (isinstance(rate, bool | str) or rate <= 0):
        where = space.where("candidate", "learning_rate")
        problems.append(Problem(where, f"{_shown(rate)} is no learning rate", "a number above 0, or $name"))
    return problems + _of_unused(space)


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
    known: dict[str, ChoiceDomain | IntDomain] = {}
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
            if not contains(domain, value)
        ]
    return problems


def condition_values(name: str, parameter: FileParameter) -> dict[str, ChoiceDomain | IntDomain]:
    """What a condition may ask of this parameter: the names it may use and their values; a float gives none."""
    if isinstance(parameter, ModulesParameter):
        return {name: ChoiceDomain(values=tuple(parameter.sets))}
    if isinstance(parameter, LayersParameter):
        modes = tuple(dict.fromkeys(parameter.modes))
        return {f"{name}.mode": ChoiceDomain(values=modes)} if len(modes) > 1 else {}
    if isinstance(parameter, FloatParameter):
        return {}
    try:
        return {name: parameter.domain()}
    except ValidationError:
        return {}


def _of_insertion(space: SearchSpaceFile, index: int, insertion: InsertionTemplate) -> list[Problem]:
    place: Place = ("candidate", "insertions", index)
    when = insertion.when
    problems = _of_conditions(space, (*place, "when"), when, space.parameters)
    for key, value, kinds in (
        ("layers", insertion.layers, (LayersParameter,)),
        ("modules", insertion.modules, (ModulesParameter,)),
    ):
        problems += _of_reference(space, (*place, key), value, kinds, when)
        if isinstance(value, str) and value != "all" and reference(value) is None:
            named = value in space.parameters
            step = f"Write ${value} for the parameter's value." if named else ""
            problems.append(
                Problem(space.where(*place, key), f"'{value}' is not understood", "all, $name, a list", step)
            )
    if isinstance(insertion.modules, tuple):
        where = space.where(*place, "modules")
        problems += [unknown(where, role, ROLE_NAMES) for role in insertion.modules if role not in ROLE_NAMES]
    for setting, given in insertion.settings.items():
        problems += _of_reference(space, (*place, "settings", setting), given, _SCALARS, when)
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
                f"Give it `otherwise: VALUE` at {space.where('parameters', name)}, or the insertion the same `when`.",
            )
        ]
    return []


def _of_unused(space: SearchSpaceFile) -> list[Problem]:
    """A parameter that nothing reads would make the search train one candidate many times."""
    used = {reference(space.candidate.learning_rate)}
    conditional: list[Mapping[str, Values]] = [parameter.when for parameter in space.parameters.values()]
    for insertion in space.candidate.insertions:
        used |= {reference(value) for value in (insertion.layers, insertion.modules, *insertion.settings.values())}
        conditional.append(insertion.when)
    used |= {parent.partition(".")[0] for when in conditional for parent in when}
    return [
        Problem(space.where("parameters", name), "nothing uses this parameter", "", f"Write ${name} under candidate.")
        for name in space.parameters
        if name not in used
    ]
