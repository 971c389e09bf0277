"""Finding what this project and others bring: objectives, spaces and pages, by entry point."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autopeft.domain.errors import Problem, UserError, unknown

OBJECTIVES = "autopeft.objectives"
SEARCH_SPACES = "autopeft.search_spaces"
PAGES = "autopeft.pages"


def names(group: str) -> list[str]:
    """Names of all plug-ins of a group, sorted."""
    return sorted(_by_name(group))


def load(group: str, name: str, where: str) -> Any:
    """The object that the plug-in `name` of `group` stands for.

    Raises:
        UserError: where there is none, two distributions bring one, or its import fails; `where` is the key or flag
            that the name came from.
    """
    found = _by_name(group)
    if name not in found:
        raise UserError(unknown(where, name, found))
    point = found[name]
    try:
        return point.load()
    except Exception as error:
        origin = point.dist.name if point.dist else "an unknown distribution"
        raise UserError(
            Problem(
                where, f"'{name}' ({point.value} of {origin}) cannot be loaded: {error}", "", f"Reinstall {origin}."
            )
        ) from error


def locate(target: str) -> Callable[..., Any]:
    """The callable that `package.module:name` stands for.

    Raises:
        ValueError: where `target` has no colon. ImportError and AttributeError pass through.
    """
    module, colon, attribute = target.partition(":")
    if not colon:
        raise ValueError(f"'{target}' is not of the form package.module:name")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


def _by_name(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        known = found.get(point.name)
        if known is not None and known.value != point.value:
            brought = sorted({other.dist.name for other in (known, point) if other.dist})
            raise UserError(
                Problem(
                    group,
                    f"'{point.name}' is brought twice: {known.value} and {point.value}",
                    "",
                    f"Uninstall one of {', '.join(brought)}.",
                )
            )
        found[point.name] = point
    return found
