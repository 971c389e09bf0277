"""What the labels mean: classes or scores, and the number that stands for each."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autopeft.domain.errors import Problem
from autopeft.evaluate.data.columns import RawSplit
from autopeft.evaluate.data.mistakes import Mistakes

MANY_FRACTIONS = 20
"""More distinct fractional values than this are scores, even where whole numbers stand among them."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
Label = bool | int | float | str


@dataclass(frozen=True)
class Labelling:
    """How labels as they were read become the numbers that a model is trained on."""

    kind: str
    """`classification` or `regression`."""
    names: tuple[str, ...]
    """Class names in index order; empty for regression."""
    seen: frozenset[str]
    """Classes that occur in training."""

    def hidden(self, rows: RawSplit) -> bool:
        """Whether every label is the -1 that hub data sets write where labels are kept secret."""
        return self.kind == "classification" and "-1" not in self.seen and set(rows.labels) == {-1}

    def encode(self, rows: RawSplit, mistakes: Mistakes) -> tuple[int, ...] | tuple[float, ...]:
        """Class indices or scores; a row with a mistake gets 0 and is reported, once."""
        if self.kind == "regression":
            return tuple(self._score(rows, row, mistakes) for row in range(len(rows.labels)))
        index = {name: i for i, name in enumerate(self.names)}
        found = []
        for row, label in enumerate(rows.labels):
            name = None if label is None else _name(label, rows.class_names)
            if name is not None and name not in self.seen:
                mistakes.add_row(rows.table.name, "unknown label", self._unknown(rows.table.place(row), name))
                name = None
            found.append(0 if name is None else index[name])
        return tuple(found)

    def _unknown(self, place: str, name: str) -> Problem:
        shown = [one for one in self.names if one in self.seen]
        close = difflib.get_close_matches(name, shown, n=1, cutoff=0.6)
        step = f"Did you mean '{close[0]}'?" if close else "Correct it, or add training rows that have it."
        if _as_number(name) is not None:
            step = "If the labels are scores, set data.task to regression; else add training rows that have it."
        more = f" … ({len(shown)} classes)" if len(shown) > 20 else ""
        return Problem(place, f"no training row has the label '{name}'", ", ".join(shown[:20]) + more, step)

    @staticmethod
    def _score(rows: RawSplit, row: int, mistakes: Mistakes) -> float:
        label = rows.labels[row]
        if label is None:
            return 0.0
        number = _as_number(label)
        if number is not None and math.isfinite(number):
            return number
        step = "Correct it, or set data.task to classification if the labels are classes."
        problem = Problem(rows.table.place(row), f"the label '{label}' is not a number", "a finite number", step)
        mistakes.add_row(rows.table.name, "label is not a number", problem)
        return 0.0


def decide(train: RawSplit, task: str, mistakes: Mistakes, notices: list[str]) -> Labelling | None:
    """The task that the training labels make (`task` is `auto`, `classification` or `regression`).

    None, with the reason in `mistakes`, where there is nothing to tell apart.
    """
    labels = [label for label in train.labels if label is not None]
    if not labels:
        return None
    if task == "regression" or (task == "auto" and train.class_names is None and _are_scores(labels)):
        scores = {_as_number(label) for label in labels}
        if len(scores) == 1:
            mistakes.add(_constant(train, f"every label is {labels[0]}", "at least two different scores"))
            return None
        if task == "auto":
            notices.append(
                f"{train.table.name}: the labels are fractional numbers, so the task is regression; "
                "set data.task to classification if they are classes."
            )
        return Labelling("regression", (), frozenset())
    seen = frozenset(_name(label, train.class_names) for label in labels)
    if len(seen) == 1:
        mistakes.add(_constant(train, f"every label is '{next(iter(seen))}'", "at least two classes"))
        return None
    return Labelling("classification", train.class_names or tuple(sorted(seen, key=_order(seen))), seen)


def _constant(train: RawSplit, found: str, allowed: str) -> Problem:
    return Problem(train.table.name, found, allowed, "Add rows of other classes, or name another column in data.label.")


def _are_scores(labels: list[Label]) -> bool:
    """Whether all labels are numbers, some have a fraction, and they are written as such or are many."""
    numbers = [_as_number(label) for label in labels]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return False
    fractions = {number for number in known if math.isfinite(number) and number != int(number)}
    written = all(isinstance(label, float) or (isinstance(label, str) and not _whole(label)) for label in labels)
    return len(fractions) > MANY_FRACTIONS or (bool(fractions) and written)


def _whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", text) is not None


def _as_number(label: Label) -> float | None:
    """The number a label is, or None; `True` is a class, not 1."""
    if isinstance(label, bool):
        return None
    if isinstance(label, str):
        return float(label) if _NUMBER.fullmatch(label) else None
    return float(label)


def _name(label: Label, class_names: tuple[str, ...] | None) -> str:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int) and class_names is not None and 0 <= label < len(class_names):
        return class_names[label]
    if isinstance(label, float) and label.is_integer():
        return str(int(label))  # pandas writes 1.0 for the class 1 as soon as one label is missing.
    return str(label)


def _order(names: frozenset[str]) -> Callable[[str], Any]:
    """Sort key: by value where all names are numbers, else text with the numbers in it by value."""
    if all(_as_number(name) is not None for name in names):
        return lambda name: (_as_number(name), name)
    return lambda name: [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _parts(name)]


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]
