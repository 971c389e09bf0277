"""Finding the text and label columns of a table, and what is missing in them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass

from autopeft.domain.errors import Problem
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data.mistakes import Mistakes
from autopeft.evaluate.data.table import Table

TEXT_PAIR = "text_pair"
"""The column of second sentences where the spec names none."""
_OFTEN_CALLED = {
    "text": ("sentence", "sentence1", "premise", "question", "question1", "content", "review", "document"),
    TEXT_PAIR: ("sentence2", "hypothesis", "passage", "question2", "context"),
    "label": ("labels", "coarse_label", "target", "class", "category", "score", "sentiment"),
    "prompt": ("question", "instruction", "input", "query", "text"),
    "completion": ("response", "output", "answer", "chosen", "target", "label"),
    "messages": ("conversations", "conversation", "chat", "dialog"),
    "choices": ("options", "endings"),
    "answer": ("label", "answerKey", "gold", "target"),
}


@dataclass(frozen=True)
class RawSplit:
    """The columns of one split; labels are still as they were read, None where a mistake was reported."""

    table: Table
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[bool | int | float | str | None, ...]
    class_names: tuple[str, ...] | None
    """Names behind integer labels, where the source brings them."""


def wanted(spec: DataSpec) -> frozenset[str]:
    """Every column that may be read."""
    labelled = (spec.text, spec.text_pair or TEXT_PAIR, spec.label)
    return frozenset((*labelled, spec.prompt, spec.completion, spec.messages, spec.choices, spec.answer))


def check(table: Table | None, spec: DataSpec, mistakes: Mistakes) -> RawSplit | None:
    """The split's columns, with what is wrong in them added to `mistakes`; None where a column is missing."""
    if table is None:
        return None
    asked = {"text": spec.text, TEXT_PAIR: spec.text_pair, "label": spec.label}
    missing = [key for key, column in asked.items() if column is not None and column not in table.names]
    for key in missing:
        mistakes.add(missing_column(table, key, asked[key] or "", {column for column in asked.values() if column}))
    if missing:
        return None
    pair = spec.text_pair or (TEXT_PAIR if TEXT_PAIR in table.names and spec.text != TEXT_PAIR else None)
    texts = text_column(table, spec.text, mistakes, may_be_empty=False)
    pairs = None if pair is None else text_column(table, pair, mistakes, may_be_empty=True)
    labels = tuple(_label(table, row, spec.label, mistakes) for row in range(table.rows))
    return RawSplit(table, texts, pairs, labels, table.class_names.get(spec.label))


def missing_column(table: Table, key: str, column: str, taken: Collection[str]) -> Problem:
    """That `column`, which `data.<key>` names, is not there; `taken` are columns that are something else."""
    free = [name for name in table.names if name not in taken]
    often = [name for name in _OFTEN_CALLED[key] if name in free]
    guess = difflib.get_close_matches(column, free, n=1, cutoff=0.6) or often[:1]
    step = f"Did you mean '{guess[0]}'? " if guess else ""
    found = f"there is no column '{column}'"
    return Problem(table.name, found, ", ".join(table.names) or "(none)", f"{step}Name the column in data.{key}.")


def text_column(table: Table, column: str, mistakes: Mistakes, may_be_empty: bool) -> tuple[str, ...]:
    """The column as texts; empty ones stand where a mistake was found."""
    texts = []
    for row, value in enumerate(table.columns[column]):
        # A number is a legitimate text (a year, an amount); JSON and Parquet writers often do not quote it.
        text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if isinstance(text, str) and (may_be_empty or text.strip()) and not _is_nan(value):
            texts.append(text)
            continue
        empty = value is None or isinstance(value, str) or _is_nan(value)
        found = f"'{column}' is {'empty' if empty else f'a {type(value).__name__}, not a text'}"
        step = "Fill it in or take the row out."
        mistakes.add_row(table.name, f"'{column}'", Problem(table.place(row), found, "a text", step))
        texts.append("")
    return tuple(texts)


def _label(table: Table, row: int, column: str, mistakes: Mistakes) -> bool | int | float | str | None:
    value = table.columns[column][row]
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, bool | int | float | str) and value != "" and not _is_nan(value):
        return value
    empty = value is None or value == ""
    kind = "empty" if empty else "not a number (NaN)" if _is_nan(value) else f"a {type(value).__name__}"
    step = "Fill it in or take the row out."
    problem = Problem(table.place(row), f"'{column}' is {kind}", "a class name or a number", step)
    mistakes.add_row(table.name, f"'{column}'", problem)
    return None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
