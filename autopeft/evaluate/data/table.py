"""The rows of one split as they were read, before any check, and the splits that come out of the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Named columns of equal length, and where each row stands."""

    name: str
    """The file as the user wrote it, or `source[split]`."""
    names: tuple[str, ...]
    """Every column that was found, in order."""
    columns: Mapping[str, Sequence[object]]
    """The columns that were asked for and found; None where a row has no value."""
    rows: int
    lines: tuple[int, ...] | None = None
    """Line number of each row, from 1; None where the source has no lines."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names behind the integers of a column, where the source brings them."""

    def place(self, row: int) -> str:
        """Where a person finds this row (counted from 0): `file:line`, or `name row N` counted from 1."""
        return f"{self.name} row {row + 1}" if self.lines is None else f"{self.name}:{self.lines[row]}"


@dataclass(frozen=True)
class Split:
    """Checked rows: every text is there, every label is one of the task's."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """Second sentences; None for single-sentence tasks."""
    labels: tuple[int, ...] | tuple[float, ...]
    """Class indices, or scores for regression."""

    def __len__(self) -> int:
        return len(self.texts)
