"""From YAML text to a checked `SearchSpaceFile`, with every mistake in one error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.spaces.file import KINDS, SearchSpaceFile, allowed_keys
from autopeft.spaces.guesses import of_guesses
from autopeft.spaces.meaning import of_meaning, shown
from autopeft.spaces.source import Place, Source, read


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
        of_space = of_meaning(space)
        # Guesses are looked at where the parameters that they give values to are sound.
        problems += of_space or of_guesses(space)
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
        return Problem(where, f"{shown(value)} is not one value", "a number, a text, true or false")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = value.get("kind") if isinstance(value, Mapping) else None
        if given is None:
            return Problem(where, "has no kind", ", ".join(KINDS), "For example `kind: choice`.")
        return unknown(source.where((*place, "kind")), str(given), KINDS)
    return Problem(where, f"{shown(value)}: {message[0].lower()}{message[1:]}")


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
