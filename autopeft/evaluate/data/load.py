"""From a `DataSpec` to checked splits: where every mistake of the user's data is found and named."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass

from autopeft.domain.errors import Problem
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data.columns import TEXT_PAIR, RawSplit, check
from autopeft.evaluate.data.labels import Labelling, decide
from autopeft.evaluate.data.mistakes import Mistakes
from autopeft.evaluate.data.sources import read_tables
from autopeft.evaluate.data.table import Split

__all__ = ["DataSet", "Split", "load_data"]

METRICS = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("spearman", "pearson"),
}
LEAST_ROWS = {"train": 4, "validation": 3, "test": 1}
"""Fewer rows than this can neither be learned from nor scored."""


@dataclass(frozen=True)
class DataSet:
    """Rows that a model can be trained on and scored with."""

    task: TaskInfo
    splits: dict[str, Split]
    """`train`, `validation` and, where there is one, `test`."""
    fingerprint: str
    """SHA-256 over the rows of all splits in their order, 16 hex digits."""
    notices: tuple[str, ...]
    """What a person should know about the data, one sentence each."""


def load_data(spec: DataSpec, seed: int) -> DataSet:
    """Read, check and label the data set; `seed` draws the sample where `max_train_rows` asks for one.

    Raises:
        UserError: with every mistake found in the settings and in the rows.
    """
    mistakes, notices = Mistakes(), list[str]()
    tables = read_tables(spec, mistakes, notices)
    raw = {name: rows for name, table in tables.items() if (rows := check(table, spec, mistakes)) is not None}
    labelling = decide(raw["train"], spec.task, mistakes, notices) if "train" in raw else None
    metric = ""
    splits: dict[str, Split] = {}
    if labelling is not None:
        metric = _metric(spec, labelling, mistakes)
        if "test" in raw and labelling.hidden(raw["test"]):
            notices.append(f"{raw['test'].table.name}: its labels are hidden (-1), so there is no test split.")
            del raw["test"]
        splits = {name: _checked(name, rows, labelling, mistakes) for name, rows in raw.items()}
        _check_pairs(raw, mistakes)
    mistakes.raise_if_any()
    assert labelling is not None

    if spec.max_train_rows is not None:
        splits["train"] = _sample(splits["train"], spec.max_train_rows, seed)
        if labelling.kind == "classification" and len(set(splits["train"].labels)) < 2:
            found = f"a sample of {spec.max_train_rows} training rows holds one class only"
            mistakes.add(Problem("data.max_train_rows", found, "", "Raise it or leave it out."))
            mistakes.raise_if_any()
    notices.extend(_duplicates(splits))
    validation = Counter(splits["validation"].labels)
    task = TaskInfo(
        kind=labelling.kind,
        labels=labelling.names,
        metric=metric,
        metrics=METRICS[labelling.kind],
        rows={name: len(split) for name, split in splits.items()},
        pairs=splits["train"].pairs is not None,
        majority_share=max(validation.values()) / validation.total() if labelling.names else None,
    )
    return DataSet(task, splits, _fingerprint(splits, labelling), tuple(notices))


def _checked(name: str, rows: RawSplit, labelling: Labelling, mistakes: Mistakes) -> Split:
    least = LEAST_ROWS[name]
    if len(rows.texts) < least:
        found = f"it holds {len(rows.texts)} rows, too few for a {name} split"
        mistakes.add(Problem(rows.table.name, found, f"at least {least} rows", "Add rows."))
    return Split(rows.texts, rows.pairs, labelling.encode(rows, mistakes))


def _check_pairs(raw: dict[str, RawSplit], mistakes: Mistakes) -> None:
    """Every split has second sentences, or none has."""
    with_pairs = [rows.table.name for rows in raw.values() if rows.pairs is not None]
    for rows in raw.values():
        if with_pairs and rows.pairs is None:
            found = f"there is no column '{TEXT_PAIR}', which {with_pairs[0]} has"
            step = "Add the column, or take it out of the other file."
            mistakes.add(Problem(rows.table.name, found, ", ".join(rows.table.names), step))


def _metric(spec: DataSpec, labelling: Labelling, mistakes: Mistakes) -> str:
    allowed = METRICS[labelling.kind]
    if spec.metric == "auto":
        return allowed[0]
    if spec.metric not in allowed:
        step = "Leave it out, or set data.task if the labels were taken for the wrong kind."
        found = f"'{spec.metric}' does not fit a {labelling.kind} task"
        mistakes.add(Problem("data.metric", found, ", ".join(allowed), step))
    return spec.metric


def _sample(split: Split, rows: int, seed: int) -> Split:
    """A sample without replacement, in the order of the file."""
    if rows >= len(split):
        return split
    keep = sorted(random.Random(seed).sample(range(len(split)), rows))
    pairs = None if split.pairs is None else tuple(split.pairs[i] for i in keep)
    return Split(tuple(split.texts[i] for i in keep), pairs, tuple(split.labels[i] for i in keep))


def _duplicates(splits: dict[str, Split]) -> list[str]:
    def keys(split: Split) -> list[tuple[str, str]]:
        return list(zip(split.texts, split.pairs or [""] * len(split), strict=True))

    train = set(keys(splits["train"]))
    counts = {name: sum(key in train for key in keys(split)) for name, split in splits.items() if name != "train"}
    if not any(counts.values()):
        return []
    parts = [f"{count} of {len(splits[name])} {name} rows" for name, count in counts.items() if count]
    return [f"{' and '.join(parts)} also stand in the training split; their scores flatter."]


def _fingerprint(splits: dict[str, Split], labelling: Labelling) -> str:
    digest = hashlib.sha256()
    for name in sorted(splits):
        split = splits[name]
        labels = [labelling.names[int(label)] for label in split.labels] if labelling.names else split.labels
        for row in zip(split.texts, split.pairs or [None] * len(split), labels, strict=True):
            digest.update(json.dumps([name, *row]).encode() + b"\n")
    return digest.hexdigest()[:16]
