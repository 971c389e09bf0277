"""Finding search spaces: those that installed packages bring, and a person's own files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import entry_points
from importlib.resources.abc import Traversable
from pathlib import Path

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.spaces.file import SearchSpaceFile
from autopeft.spaces.reading import parse

GROUP = "autopeft.search_spaces"
"""Entry points of this group are packages; each of their `*.yaml` files is a space."""
_SUFFIXES = (".yaml", ".yml")
_WHERE = "space"


@dataclass(frozen=True)
class SpaceSummary:
    """One line of `autopeft spaces`."""

    name: str
    """What `--space` takes."""
    summary: str
    package: str
    """The package that brings it."""
    parameters: tuple[str, ...] = ()
    problem: str = ""
    """Why it cannot be used; empty where it can."""


def available() -> list[SpaceSummary]:
    """Every space that an installed package brings, sorted by name; a broken one says why."""
    summaries = []
    for name, package, file in sorted(_files(), key=lambda found: found[:2]):
        try:
            space = _parse(file)
        except UserError as error:
            summaries.append(SpaceSummary(name, "", package, problem=str(error)))
        else:
            summaries.append(SpaceSummary(name, space.summary, package, tuple(space.parameters)))
    return summaries


def load_space(name_or_path: str) -> SearchSpaceFile:
    """The space of this name, or in this file where the text ends in `.yaml` or `.yml` or is a file's path.

    Raises:
        UserError: where there is none, two packages bring one of this name, or it has mistakes (all of them).
    """
    if name_or_path.endswith(_SUFFIXES):
        return _parse(Path(name_or_path))
    found = [(package, file) for name, package, file in _files() if name == name_or_path]
    if len(found) > 1:
        brought = " and ".join(sorted(package for package, _ in found))
        raise UserError(
            Problem(_WHERE, f"'{name_or_path}' is brought by {brought}", "", "Uninstall one, or give a file's path.")
        )
    if found:
        return _parse(found[0][1])
    if Path(name_or_path).is_file():
        return _parse(Path(name_or_path))
    names = {name for name, _, _ in _files()}
    raise UserError(unknown(_WHERE, name_or_path, names, "A file of your own is given by its path, ending in .yaml."))


def _files() -> Iterator[tuple[str, str, Traversable]]:
    """Name, package and file of every packaged space."""
    for package in sorted({point.value for point in entry_points(group=GROUP)}):
        try:
            folder = resources.files(package)
        except ImportError as error:
            raise UserError(
                Problem(_WHERE, f"the package {package} of the group {GROUP} cannot be imported: {error}")
            ) from error
        for file in folder.iterdir():
            if file.name.endswith(_SUFFIXES):
                yield file.name.rpartition(".")[0], package, file


def _parse(file: Path | Traversable) -> SearchSpaceFile:
    origin = str(file) if isinstance(file, Path) else file.name
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(Problem(_WHERE, f"there is no file {origin}", "", "See `autopeft spaces` for names.")) from None
    except IsADirectoryError:
        raise UserError(Problem(_WHERE, f"{origin} is a folder", "the path of a YAML file")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(_WHERE, f"{origin} cannot be read: {error}", "a YAML file in UTF-8")) from error
    return parse(text, origin)
