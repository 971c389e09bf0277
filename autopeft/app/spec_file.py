"""Specs from YAML files and flags, with every mistake named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.spec import SearchSpec

MAX_BYTES = 2**20
_PATH_KEYS = (("data", "train"), ("data", "validation"), ("data", "test"))


def read_spec(path: Path) -> dict[str, Any]:
    """The mapping in a YAML spec file; data and space paths in it are relative to the file.

    Raises:
        UserError: where it is missing, too large, not YAML or not a mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(Problem(str(path), "is larger than 1 MiB", "", "Is it a spec?"))
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be read ({error.strerror})", "", "Check the path.")) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(Problem(place, f"is not valid YAML: {getattr(error, 'problem', error)}")) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(Problem(str(path), "is not a mapping of keys to values", "", "See `autopeft schema`."))
    return anchored(values, path.resolve().parent)


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


def make_spec(values: Mapping[str, Any], where: str = "") -> SearchSpec:
    """A spec of these values.

    Args:
        values: As `SearchSpec` takes them.
        where: File the values came from, for messages; empty for flags.

    Raises:
        UserError: with every mistake.
    """
    try:
        return SearchSpec.model_validate(values)
    except ValidationError as error:
        raise UserError(*(_problem(detail, where) for detail in error.errors())) from None


def _problem(detail: Any, where: str) -> Problem:
    steps = [str(step) for step in detail["loc"] if not _is_branch(step)]
    key = ".".join(steps) or "spec"
    place = f"{where}: {key}" if where else key
    if detail["type"] == "extra_forbidden":
        problem = unknown(place, steps[-1], keys_below(SearchSpec, steps[:-1]))
        return Problem(place, "no such key", problem.allowed, problem.next_step.replace(" Did", "Did"))
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    allowed = ""
    if detail["type"] == "literal_error":
        allowed = str(detail["ctx"]["expected"])
        message = f"'{given}' is not one of them"
    elif isinstance(given, str | int | float) and not message.startswith("budget:"):
        message = f"'{given}': {message[:1].lower()}{message[1:]}"
    message = message.removeprefix("budget: ")
    return Problem(place, message, allowed)


def _is_branch(step: Any) -> bool:
    """Whether pydantic names a validator or a branch of a union in this step of a location, not a key."""
    text = str(step)
    return "[" in text or (text[:1].isupper() and text.isidentifier())


def keys_below(model: type[BaseModel], steps: list[str]) -> list[str]:
    """Keys that the part of the spec at `steps` takes."""
    for step in steps:
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)
