"""The embedded data set: paragraphs of the standard library's docstrings, labelled by what they are about.

A text is the name of the function or class and one paragraph of what is written about it: `get payload: Return a …`.
The text is read from the source files of the running interpreter, so nothing is downloaded and nothing is imported;
another Python version gives a slightly different set, which the fingerprint shows.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from autopeft.domain.errors import Problem, UserError
from autopeft.evaluate.data.table import Table

AREAS: dict[str, tuple[str, ...]] = {
    "asyncio": ("asyncio",),
    "importing": ("importlib", "pkgutil", "zipimport", "imp", "runpy", "modulefinder", "site"),
    "logging": ("logging",),
    "mail": ("email", "mailbox", "imaplib", "smtplib", "poplib", "nntplib", "smtpd", "quopri", "mailcap"),
    "numbers": ("_pydecimal", "statistics", "fractions", "numbers", "random", "heapq", "bisect"),
    "testing": ("unittest", "doctest"),
    "web": ("http", "urllib", "wsgiref", "cgi", "html", "webbrowser"),
    "xml": ("xml", "plistlib", "xmlrpc"),
}  # fmt: skip
"""Modules of each area; those that the interpreter does not have are left out."""
ALSO_MASKED = ("decimal", "tests")
"""Names that give an area away although no module of it is called so."""
MASK = "this"
"""Stands where a module's or an area's name stood."""
_PIECE = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")
"""The words inside identifiers: XMLReader is XML and Reader."""
_WORD = re.compile(r"\b[A-Za-z]{2,}\b")


@dataclass(frozen=True)
class Sizes:
    """How much of the library becomes data."""

    train: int = 80
    """Paragraphs per area, at most."""
    validation: int = 40
    test: int = 40
    shortest: int = 40
    """Characters of a paragraph."""
    longest: int = 200
    per_owner: int = 12
    """Paragraphs from one function, class or module docstring, at most; without it a few big classes rule an area."""
    least_train: int = 40
    """Areas with fewer training paragraphs than this are left out."""


@dataclass(frozen=True)
class _Paragraph:
    area: str
    owner: str
    """The module's function or class that the docstring belongs to, methods included."""
    name: str
    """Of the function, method or class, in words; empty for a module."""
    body: str

    @property
    def text(self) -> str:
        return f"{self.name}: {self.body}" if self.name else self.body


def tables(sizes: Sizes = Sizes(), library: Path | None = None) -> dict[str, Table]:
    """Columns `text` and `label`, splits `train`, `validation` and `test`; always the same for one interpreter.

    All paragraphs of one function, class or module docstring are in one split. `library` is the folder of the
    standard library's source files, by default the running interpreter's.

    Raises:
        UserError: where the folder holds too few docstrings, as in installations that come without source files.
    """
    return dict(_tables(sizes, library or Path(sysconfig.get_path("stdlib"))))


@cache
def _tables(sizes: Sizes, library: Path) -> dict[str, Table]:
    rows: dict[str, list[_Paragraph]] = {"train": [], "validation": [], "test": []}
    by_area: dict[str, list[_Paragraph]] = defaultdict(list)
    for paragraph in _distinct(library, sizes.shortest, sizes.longest):
        by_area[paragraph.area].append(paragraph)
    areas = 0
    for area in sorted(by_area):
        parts = _split(by_area[area], sizes)
        if len(parts["train"]) < sizes.least_train or not parts["validation"] or not parts["test"]:
            continue
        areas += 1
        for name, part in parts.items():
            rows[name] += part
    if areas < 2:
        step = "Install Python with its source files, or name files in data.train and data.validation."
        found = f"'{library}' holds docstrings of {areas} areas only"
        raise UserError(Problem("data.source", found, "at least 2 areas", step))
    return {name: _table(name, part) for name, part in rows.items()}


def _table(name: str, paragraphs: Sequence[_Paragraph]) -> Table:
    ordered = sorted(paragraphs, key=lambda one: _hash(one.text))
    columns = {"text": tuple(one.text for one in ordered), "label": tuple(one.area for one in ordered)}
    return Table(f"python-docs[{name}]", ("text", "label"), columns, len(ordered))


def _split(paragraphs: Sequence[_Paragraph], sizes: Sizes) -> dict[str, list[_Paragraph]]:
    """Test, then validation, then train are filled with whole owners, in an order that only the names decide."""
    owners: dict[str, list[_Paragraph]] = defaultdict(list)
    for paragraph in paragraphs:
        if len(owners[paragraph.owner]) < sizes.per_owner:
            owners[paragraph.owner].append(paragraph)
    left = sum(len(part) for part in owners.values())
    # A small area gives no more than a sixth to each held-out split.
    room = {"test": min(sizes.test, left // 6), "validation": min(sizes.validation, left // 6), "train": sizes.train}
    parts: dict[str, list[_Paragraph]] = {"train": [], "validation": [], "test": []}
    names = iter(sorted(owners, key=_hash))
    for split, size in room.items():
        while len(parts[split]) < size and (owner := next(names, None)) is not None:
            parts[split] += owners[owner]
        del parts[split][size:]
    return parts


@cache
def _distinct(library: Path, shortest: int, longest: int) -> tuple[_Paragraph, ...]:
    """The first of paragraphs with equal words; none where several areas say the same."""
    first: dict[str, _Paragraph] = {}
    areas: dict[str, set[str]] = defaultdict(set)
    for paragraph in _paragraphs(library, shortest, longest):
        key = " ".join(_WORD.findall(paragraph.body.lower()))
        first.setdefault(key, paragraph)
        areas[key].add(paragraph.area)
    return tuple(paragraph for key, paragraph in first.items() if len(areas[key]) == 1)


def _paragraphs(library: Path, shortest: int, longest: int) -> Iterator[_Paragraph]:
    masked = {piece.lower() for name in _giveaways() for piece in _PIECE.findall(name)}
    for area, modules in AREAS.items():
        for module in modules:
            for dotted, file in _sources(library, module):
                own = masked | {piece.lower() for piece in _PIECE.findall(dotted) if len(piece) > 2}
                for owner, name, docstring in _docstrings(file):
                    for part in re.split(r"\n\s*\n", docstring):
                        body = " ".join(part.split())
                        if not shortest <= len(body) <= longest or ">>>" in body:
                            continue
                        if len(_WORD.findall(body)) >= 6:  # shorter ones are signatures and headings
                            yield _Paragraph(area, f"{dotted}:{owner}", _mask(name, own), _mask(body, own))


def _giveaways() -> Iterator[str]:
    yield from AREAS
    yield from ALSO_MASKED
    for modules in AREAS.values():
        yield from modules


def _mask(text: str, names: set[str]) -> str:
    return _PIECE.sub(lambda piece: MASK if piece[0].lower() in names else piece[0], text)


def _sources(library: Path, module: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and source file of a top-level module and all below it, tests left out, in order of name."""
    if module not in sys.stdlib_module_names:
        return
    single = library / f"{module}.py"
    if single.is_file():
        yield module, single
    folder = library / module
    for file in sorted(folder.rglob("*.py")) if folder.is_dir() else ():
        parts = file.relative_to(library).with_suffix("").parts
        if not {"test", "tests", "idle_test"} & set(parts):
            yield ".".join(part for part in parts if part != "__init__"), file


def _docstrings(file: Path) -> Iterator[tuple[str, str, str]]:
    """Owner, own name in words, and cleaned docstring of the module and of every function and class in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # a file that another tool left there; the set needs no single module
    if (docstring := ast.get_docstring(tree)) is not None:
        yield "", "", docstring
    for top in tree.body:
        for node in ast.walk(top):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring is not None:
                    owner = getattr(top, "name", f"line {top.lineno}")
                    yield owner, node.name.strip("_").replace("_", " "), docstring


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
