"""From a `DataSpec` to checked splits: where every mistake of the user's data is found and named."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from autopeft.domain.layout import TaskName
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data.labelled import read_labelled
from autopeft.evaluate.data.mistakes import Mistakes
from autopeft.evaluate.data.prompts import holds_prompts, read_prompts
from autopeft.evaluate.data.sources import read_tables
from autopeft.evaluate.data.table import Exchanges, Rows, Split, Table

__all__ = ["DataSet", "Split", "load_data"]


@dataclass(frozen=True)
class DataSet:
    """Rows that a model can be trained on and scored with."""

    task: TaskInfo
    splits: Mapping[str, Split] | Mapping[str, Exchanges]
    """`train`, `validation` and, where there is one, `test`."""
    fingerprint: str
    """SHA-256 over the rows of all splits in their order, 16 hex digits."""
    notices: tuple[str, ...]
    """What a person should know about the data, one sentence each."""


def load_data(spec: DataSpec, seed: int) -> DataSet:
    """Read, check and label the data set; `seed` draws the samples that `max_train_rows` and the like ask for.

    Raises:
        UserError: with every mistake found in the settings and in the rows.
    """
    mistakes, notices = Mistakes(), list[str]()
    tables = read_tables(spec, mistakes, notices)
    if _is_causal(spec, tables, notices):
        return _prompts(spec, tables, seed, mistakes, notices)
    found = read_labelled(spec, tables, mistakes, notices)
    mistakes.raise_if_any()
    splits = _sampled(found.splits, spec, seed)
    if spec.max_train_rows is not None:
        found.check_sample(splits["train"], spec.max_train_rows, mistakes)
        mistakes.raise_if_any()
    notices.extend(_duplicates(splits))
    task = found.task(splits)
    return DataSet(task, splits, _fingerprint(splits, task), tuple(notices))


def _prompts(
    spec: DataSpec, tables: Mapping[str, Table | None], seed: int, mistakes: Mistakes, notices: list[str]
) -> DataSet:
    found = read_prompts(spec, tables, mistakes, notices)
    mistakes.raise_if_any()
    splits = _sampled(found.splits, spec, seed)
    notices.extend(_duplicates(splits))
    task = found.task(splits)
    return DataSet(task, splits, _fingerprint(splits, task), tuple(notices))


def _is_causal(spec: DataSpec, tables: Mapping[str, Table | None], notices: list[str]) -> bool:
    """Whether the rows are for a language model: as asked, or by their columns."""
    if spec.task != "auto":
        return spec.task == TaskName.CAUSAL_LM.value
    table = tables.get("train") or tables.get("validation")
    if table is None or spec.label in table.names or not holds_prompts(spec, table):
        return False
    chats = spec.prompt not in table.names
    what = f"'{spec.messages}'" if chats else f"'{spec.prompt}' and what to answer"
    notices.append(
        f"{table.name}: the rows hold {what} and no '{spec.label}', so the task is causal-lm; "
        "set data.task if they are to be classified."
    )
    return True


T = TypeVar("T", Split, Exchanges)


def _sampled(splits: Mapping[str, T], spec: DataSpec, seed: int) -> dict[str, T]:
    """The splits, or samples of those that are limited."""
    limits = {"train": spec.max_train_rows, "validation": spec.max_validation_rows}
    return {
        name: split if (rows := limits.get(name)) is None else _sample(split, rows, seed)
        for name, split in splits.items()
    }


def _sample(split: T, rows: int, seed: int) -> T:
    """A sample without replacement, in the order of the file."""
    if rows >= len(split):
        return split
    return split.sampled(sorted(random.Random(seed).sample(range(len(split)), rows)))


def _duplicates(splits: Mapping[str, Rows]) -> list[str]:
    train = set(splits["train"].questions())
    counts = {
        name: sum(question in train for question in split.questions())
        for name, split in splits.items()
        if name != "train"
    }
    if not any(counts.values()):
        return []
    parts = [f"{count} of {len(splits[name])} {name} rows" for name, count in counts.items() if count]
    return [f"{' and '.join(parts)} also stand in the training split; their scores flatter."]


def _fingerprint(splits: Mapping[str, Rows], task: TaskInfo) -> str:
    digest = hashlib.sha256()
    for name in sorted(splits):
        for row in splits[name].records(task):
            digest.update(json.dumps([name, *row]).encode() + b"\n")
    return digest.hexdigest()[:16]
