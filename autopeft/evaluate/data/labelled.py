"""Rows with labels: sequence classification and regression."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.domain.errors import Problem
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import DataSpec
from autopeft.evaluate.data.columns import TEXT_PAIR, RawSplit, check
from autopeft.evaluate.data.labels import Labelling, decide
from autopeft.evaluate.data.mistakes import Mistakes, check_rows
from autopeft.evaluate.data.table import Split, Table

METRICS = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("spearman", "pearson"),
}


@dataclass(frozen=True)
class LabelledData:
    """The splits of a labelled data set and what their labels mean."""

    splits: dict[str, Split]
    labelling: Labelling | None
    """None where the training labels make no task; `Mistakes` hold the reason."""
    metric: str

    def task(self, splits: Mapping[str, Split]) -> TaskInfo:
        """The task of these splits, which may hold a sample of the rows."""
        assert self.labelling is not None
        validation = Counter(splits["validation"].labels)
        return TaskInfo(
            kind=self.labelling.kind,
            labels=self.labelling.names,
            metric=self.metric,
            metrics=METRICS[self.labelling.kind],
            rows={name: len(split) for name, split in splits.items()},
            pairs=splits["train"].pairs is not None,
            majority_share=max(validation.values()) / validation.total() if self.labelling.names else None,
        )

    def check_sample(self, train: Split, rows: int, mistakes: Mistakes) -> None:
        """A sample of the training rows must still have something to tell apart."""
        if self.labelling is not None and self.labelling.kind == "classification" and len(set(train.labels)) < 2:
            found = f"a sample of {rows} training rows holds one class only"
            mistakes.add(Problem("data.max_train_rows", found, "", "Raise it or leave it out."))


def read_labelled(
    spec: DataSpec, tables: Mapping[str, Table | None], mistakes: Mistakes, notices: list[str]
) -> LabelledData:
    """Check and label the rows; what is wrong goes to `mistakes`."""
    raw = {name: rows for name, table in tables.items() if (rows := check(table, spec, mistakes)) is not None}
    labelling = decide(raw["train"], spec.task, mistakes, notices) if "train" in raw else None
    if labelling is None:
        return LabelledData({}, None, "")
    metric = _metric(spec, labelling, mistakes)
    if "test" in raw and labelling.hidden(raw["test"]):
        notices.append(f"{raw['test'].table.name}: its labels are hidden (-1), so there is no test split.")
        del raw["test"]
    splits = {name: _checked(name, rows, labelling, mistakes) for name, rows in raw.items()}
    _check_pairs(raw, mistakes)
    return LabelledData(splits, labelling, metric)


def _checked(name: str, rows: RawSplit, labelling: Labelling, mistakes: Mistakes) -> Split:
    check_rows(name, rows.table.name, len(rows.texts), mistakes)
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
