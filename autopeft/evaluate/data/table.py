"""The rows of one split as they were read, before any check, and the splits that come out of the checks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from autopeft.domain.results import TaskInfo


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


class Rows(Protocol):
    """Checked rows of one split, whatever their task."""

    def __len__(self) -> int: ...

    def sampled(self, rows: Sequence[int]) -> Self:
        """The rows at these positions, in this order."""
        ...

    def questions(self) -> list[Hashable]:
        """What each row asks, its answer left out: rows with equal ones are the same row twice."""
        ...

    def records(self, task: TaskInfo) -> Iterator[list[object]]:
        """Everything that counts in each row, as JSON values."""
        ...


@dataclass(frozen=True)
class Split:
    """Rows to classify or score: every text is there, every label is one of the task's."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """Second sentences; None for single-sentence tasks."""
    labels: tuple[int, ...] | tuple[float, ...]
    """Class indices, or scores for regression."""

    def __len__(self) -> int:
        return len(self.texts)

    def sampled(self, rows: Sequence[int]) -> Split:
        """See `Rows.sampled`."""
        pairs = None if self.pairs is None else tuple(self.pairs[i] for i in rows)
        return Split(tuple(self.texts[i] for i in rows), pairs, tuple(self.labels[i] for i in rows))

    def questions(self) -> list[Hashable]:
        """See `Rows.questions`."""
        return list(zip(self.texts, self.pairs or [""] * len(self), strict=True))

    def records(self, task: TaskInfo) -> Iterator[list[object]]:
        """See `Rows.records`; labels by name."""
        labels = [task.labels[int(label)] for label in self.labels] if task.labels else self.labels
        for text, pair, label in zip(self.texts, self.pairs or [None] * len(self), labels, strict=True):
            yield [text, pair, label]


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Exchange:
    """One row for a language model: a prompt and what it shall write, or a chat."""

    prompt: str
    """As the model gets it, a separator included; empty for a chat."""
    completion: str
    """Empty for a chat."""
    messages: tuple[Message, ...] = ()
    """A chat, up to its last assistant turn; empty for a prompt."""
    choices: tuple[str, ...] = ()
    """Completions to choose among."""
    answer: int | None = None
    """Index of the right one."""
    answer_text: str | None = None
    """A short answer that a generated text may consist of, beside the completion itself."""


@dataclass(frozen=True)
class Exchanges:
    """Rows for a language model."""

    rows: tuple[Exchange, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def sampled(self, rows: Sequence[int]) -> Exchanges:
        """See `Rows.sampled`."""
        return Exchanges(tuple(self.rows[i] for i in rows))

    def questions(self) -> list[Hashable]:
        """See `Rows.questions`."""
        return [(row.prompt, row.messages[:-1], row.choices) for row in self.rows]

    def records(self, task: TaskInfo) -> Iterator[list[object]]:
        """See `Rows.records`."""
        for row in self.rows:
            chat = [[message.role, message.content] for message in row.messages]
            yield [row.prompt, row.completion, chat, list(row.choices), row.answer, row.answer_text]
