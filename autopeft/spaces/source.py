"""YAML text as plain values and as lines: which line each key stands on, and what is wrong with the text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from autopeft.domain.errors import Problem, UserError

MAX_BYTES = 64 * 1024
"""A space or a spec that a person enjoys reading is far smaller."""

Place = tuple[str | int, ...]
"""Keys and indices from the root of the document."""


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that also takes `1e-4` for a number, as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:float"]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF|nan|NaN|NAN))"
    ),
    list("-+.0123456789"),
)


@dataclass
class Source:
    """A YAML document with the line of every key."""

    origin: str
    """Path or package resource, as messages name it."""
    values: Any
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """Mistakes of the text itself (keys given twice)."""

    def where(self, place: Place) -> str:
        """`file.yaml:12: parameters.rank` for a place, or the line of the nearest enclosing key."""
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        key = ".".join(str(part) for part in place)
        return f"{self.origin}:{line}: {key}" if key else f"{self.origin}:{line}"


def read(text: str, origin: str, what: str = "a search space") -> Source:
    """Parse one YAML document that should be `what`; nothing but scalars, lists and mappings comes out.

    Raises:
        UserError: where the text is too long, empty, not YAML, uses aliases or a tag of Python's.
    """
    if len(text.encode()) > MAX_BYTES:
        raise UserError(Problem(origin, f"the file is too large for {what}", f"at most {MAX_BYTES // 1024} KiB"))
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise UserError(
                    Problem(f"{origin}:{line}", f"'*{event.anchor}' is an alias", "plain values", "Write it out.")
                )
        loader = _Loader(text)
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(_unreadable(error, origin)) from error
    except ValueError as error:  # such as a date that the calendar lacks
        raise UserError(Problem(origin, f"cannot be read: {error}", "YAML")) from error
    if node is None:
        raise UserError(Problem(origin, "the file is empty", what, "See the README for an example."))
    source = Source(origin, values)
    _walk(node, (), source)
    return source


def _walk(node: yaml.Node, place: Place, source: Source) -> None:
    source.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            inner = (*place, str(key.value))
            source.lines[inner] = key.start_mark.line + 1
            if str(key.value) in seen:
                source.problems.append(
                    Problem(source.where(inner), "is given twice", "each key once", "Remove or rename one.")
                )
            seen.add(str(key.value))
            _walk(value, inner, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*place, index), source)


def _unreadable(error: yaml.YAMLError, origin: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    where = f"{origin}:{mark.line + 1}" if mark is not None else origin
    found = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return Problem(where, f"this is not YAML: {found}", "", "Check indentation, colons and brackets near this line.")
