"""Specs from YAML files and flags, with every mistake named."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.spec import SearchSpec, pairs_of
from autopeft.spaces.source import Source, read


def read_spec(path: Path) -> Source:
    """A YAML spec file; `Source.values` is a mapping.

    Raises:
        UserError: where it cannot be read, is not YAML, gives a key twice or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(Problem(str(path), f"the spec cannot be read ({reason})", "", "Check the path.")) from error
    source = read(text, str(path), "a search spec")
    if source.problems:
        raise UserError(*source.problems)
    if not isinstance(source.values, dict):
        raise UserError(Problem(str(path), "it is not a mapping of keys to values", "", "See `autopeft schema`."))
    return source


def anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with the paths in it that exist below `folder` made absolute."""
    data = values.get("data")
    if isinstance(data, str) and (folder / data).exists():
        values = {**values, "data": str(folder / data)}
    elif isinstance(data, dict):
        data = dict(data)
        files = data.get("source") is None
        for key in ("train", "validation", "test"):
            if files and isinstance(data.get(key), str):
                data[key] = str(folder / data[key])
        if isinstance(data.get("source"), str) and (folder / data["source"]).exists():
            data["source"] = str(folder / data["source"])
        values = {**values, "data": data}
    model = values.get("model")
    if isinstance(model, str) and (folder / model).exists():
        values = {**values, "model": str(folder / model)}
    elif isinstance(model, dict) and isinstance(model.get("source"), str) and (folder / model["source"]).exists():
        values = {**values, "model": {**model, "source": str(folder / model["source"])}}
    there = values.get("predict_for")
    with suppress(ValueError):  # said again, with its place, when the spec is made
        there = pairs_of(there)
    if isinstance(there, dict) and isinstance(there.get("model"), str) and (folder / there["model"]).exists():
        values = {**values, "predict_for": {**there, "model": str(folder / there["model"])}}
    for key in ("warm_start", "start_with"):
        named = values.get(key)
        if isinstance(named, str):
            named = [part.strip() for part in named.split(",") if part.strip()]
        if isinstance(named, list):
            # A run is named by its name, or by a path to its folder.
            inside = [isinstance(one, str) and (key == "start_with" or Path(one).name != one) for one in named]
            kept = [str(folder / one) if here else one for one, here in zip(named, inside, strict=True)]
            values = {**values, key: kept}
    space = values.get("space")
    if isinstance(space, str) and space.endswith((".yaml", ".yml")):
        values = {**values, "space": str(folder / space)}
    return values


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` put in; a bare string under a key that `over` opens is its main value."""
    main = {"model": "source", "data": "source", "sampler": "name"}
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping):
            if isinstance(below, str) and key in main:
                below = {main[key]: below}
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def make_spec(values: Mapping[str, Any], source: Source | None = None) -> SearchSpec:
    """A spec of these values.

    Args:
        values: As `SearchSpec` takes them.
        source: The file that some of them came from, for the lines in messages.

    Raises:
        UserError: with every mistake.
    """
    try:
        return SearchSpec.model_validate(values)
    except ValidationError as error:
        raise UserError(*(_problem(detail, source) for detail in error.errors())) from None


def spec_of_file(path: Path) -> SearchSpec:
    """The spec in a file, paths in it relative to the file.

    Raises:
        UserError: with every mistake.
    """
    source = read_spec(path)
    return make_spec(anchored(source.values, path.resolve().parent), source)


def _problem(detail: Any, source: Source | None) -> Problem:
    steps = tuple(str(step) for step in detail["loc"] if not _is_branch(step))
    place = ".".join(steps) or "spec"
    if source is not None and steps and steps[:1] in source.lines:
        place = source.where(steps)
    if detail["type"] == "extra_forbidden":
        problem = unknown(place, steps[-1], keys_below(SearchSpec, list(steps[:-1])))
        return Problem(place, "there is no such key", problem.allowed, problem.next_step)
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    if detail["type"] == "literal_error":
        return Problem(place, f"'{given}' is not one of them", str(detail["ctx"]["expected"]))
    if isinstance(given, str | int | float) and not message.startswith("budget:"):
        message = f"'{given}': {message[:1].lower()}{message[1:]}"
    return Problem(place, message.removeprefix("budget: "))


def _is_branch(step: Any) -> bool:
    """Whether pydantic names a validator or a branch of a union in this step of a location, not a key."""
    text = str(step)
    return "[" in text or (text[:1].isupper() and text.isidentifier())


def keys_below(model: type[BaseModel], steps: list[str]) -> list[str]:
    """Keys that the part of the spec at `steps` takes."""
    for step in steps:
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        parts = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
        below = next((part for part in parts if issubclass(part, BaseModel)), None)
        if below is None:
            break
        model = below
    return list(model.model_fields)
