"""What a search found: scored trials, the front, and points picked from it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ByteSize, ConfigDict, TypeAdapter, ValidationError

from autopeft.domain import pareto
from autopeft.domain.budget import Budget, Spent
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.objective import Direction, Objective, Unit
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Trial, TrialStatus

PICKS = ("knee", "most-accurate", "smallest")


class TaskInfo(BaseModel):
    """What the data set asks of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """`classification`, `regression` or `causal-lm`."""
    labels: tuple[str, ...] = ()
    """Class names in index order; empty for other kinds."""
    metric: str
    """The headline metric."""
    metrics: tuple[str, ...]
    """Every metric that trials report."""
    rows: dict[str, int]
    """Rows per split: `train`, `validation` and, where there is one, `test`."""
    pairs: bool = False
    """Whether each row is a pair of texts."""
    chat: bool = False
    """Whether each row is a list of messages, which the tokenizer's template renders."""
    choices: int = 0
    """Most completions that a validation row lets choose among; 0 where there are none."""
    majority_share: float | None = None
    """Share of the most frequent class in validation: what guessing reaches; None where rows have choices of their own.
    """

    @property
    def name(self) -> TaskName:
        """What a model with its head is trained for."""
        return TaskName.CAUSAL_LM if self.kind == TaskName.CAUSAL_LM else TaskName.SEQUENCE_CLASSIFICATION


class Provenance(BaseModel):
    """What a number in a report depends on besides the spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: dict[str, str]
    """Installed versions of Python and of the packages that compute or choose."""
    machine: str
    """Processor, cores, GPUs."""
    data_fingerprint: str
    """SHA-256 over the rows of every split, 16 hex digits."""
    model_fingerprint: str
    """SHA-256 over the model's config and the weight file's size and header, 16 hex digits."""


class RunRecord(BaseModel):
    """The row of one search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    spec: SearchSpec
    layout: ModelLayout
    task: TaskInfo
    provenance: Provenance
    created_at: float
    """Unix seconds."""


@dataclass(frozen=True)
class ScoredTrial:
    """A trial and its objective values, in the order of the objectives; None unless complete and finite."""

    trial: Trial
    values: tuple[float, ...] | None


def score(trial: Trial, objectives: Sequence[Objective]) -> ScoredTrial:
    """Score one trial; a trial that did not complete, or lacks a number, has no values."""
    if trial.status is not TrialStatus.COMPLETE or trial.measurements is None:
        return ScoredTrial(trial, None)
    measurements = trial.measurements
    values = tuple(objective(measurements) for objective in objectives)
    return ScoredTrial(trial, values if all(math.isfinite(value) for value in values) else None)


@dataclass(frozen=True)
class Front:
    """The non-dominated feasible finite trials, in ascending order of the last objective's value."""

    objectives: tuple[Objective, ...]
    members: tuple[ScoredTrial, ...]

    @classmethod
    def of(cls, objectives: Sequence[Objective], scored: Sequence[ScoredTrial]) -> Front:
        """The front of these trials; of several with equal values, the first proposed stays."""
        finite = [one for one in scored if one.values is not None]
        if not finite:
            return cls(tuple(objectives), ())
        points = to_minimise(objectives, finite)
        keep = pareto.non_dominated(points)
        members: dict[tuple[float, ...], ScoredTrial] = {}
        for one, kept in sorted(zip(finite, keep, strict=True), key=lambda pair: pair[0].trial.number):
            if kept and one.values is not None:
                members.setdefault(one.values, one)
        ordered = sorted(members.values(), key=lambda one: (one.values or ())[::-1])
        return cls(tuple(objectives), tuple(ordered))

    @property
    def numbers(self) -> frozenset[int]:
        """Trial numbers of the members."""
        return frozenset(one.trial.number for one in self.members)

    def pick(self, what: str) -> ScoredTrial:
        """One point: `knee`, `most-accurate`, `smallest`, a trial number, or limits.

        `most-accurate` is the best in the first objective of quality (an accuracy, a validation loss), `smallest` the
        best in the first of bytes or counts to minimise, in whatever order the objectives are; where there is none,
        the first and the last objective stand for them. Limits such as `train_peak_bytes<=2GiB`, joined by commas,
        leave the points that keep them, and the best of these in the first objective that no limit names is picked.

        Raises:
            UserError: where the front is empty, nothing is left, or `what` cannot be read.
        """
        if not self.members:
            raise UserError(Problem("front", "it is empty: no trial completed", "", "See `autopeft status`."))
        points = to_minimise(self.objectives, self.members)
        if what == "knee":
            return self.members[pareto.knee(points)]
        if what == "most-accurate":
            return self._best(points, self.quality_column)
        if what == "smallest":
            return self._best(points, self._size_column)
        if re.fullmatch(r"\d+", what):
            for one in self.members:
                if one.trial.number == int(what):
                    return one
            raise UserError(
                Problem("pick", f"trial {what} is not on the front", ", ".join(map(str, sorted(self.numbers))))
            )
        return self._within(what)

    @property
    def quality_column(self) -> int:
        """Index of the objective that `most-accurate` goes by."""
        return quality_column(self.objectives) or 0

    @property
    def _size_column(self) -> int:
        smaller = [
            i
            for i, objective in enumerate(self.objectives)
            if objective.direction is Direction.MINIMIZE and not objective.is_quality
        ]
        sizes = [i for i in smaller if self.objectives[i].unit in (Unit.BYTES, Unit.COUNT)]
        return next(iter([*sizes, *smaller]), len(self.objectives) - 1)

    def _best(self, points: pareto.Points, column: int) -> ScoredTrial:
        """The best in one objective; of equals, the best in the others, in their order."""
        others = [points[:, index] for index in reversed(range(points.shape[1])) if index != column]
        return self.members[int(np.lexsort((*others, points[:, column]))[0])]

    def _within(self, limits: str) -> ScoredTrial:
        names = [objective.name for objective in self.objectives]
        left, limited = list(self.members), set()
        for part in limits.split(","):
            match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", part)
            if match is None:
                raise UserError(
                    Problem("pick", f"'{what_of(part)}' cannot be read", ", ".join((*PICKS, "TRIAL", '"NAME<=VALUE"')))
                )
            name, sense, text = match.groups()
            if name not in names:
                raise UserError(unknown("pick", name, names))
            column = names.index(name)
            bound = _number(text, self.objectives[column].unit)
            limited.add(column)
            left = [
                one
                for one in left
                if one.values and (one.values[column] <= bound if sense == "<=" else one.values[column] >= bound)
            ]
        if not left:
            raise UserError(Problem("pick", f"no point of the front keeps {limits}", "", "See `autopeft front`."))
        free = next((index for index in range(len(names)) if index not in limited), 0)
        sign = self.objectives[free].sign
        return min(left, key=lambda one: sign * (one.values or ())[free])


def quality_column(objectives: Sequence[Objective]) -> int | None:
    """Index of the first objective of quality; None where there is none."""
    return next((index for index, objective in enumerate(objectives) if objective.is_quality), None)


def what_of(part: str) -> str:
    """The part of a limit as it is quoted in a message."""
    return part.strip() or "(nothing)"


def _number(text: str, unit: Unit) -> float:
    try:
        return float(TypeAdapter(ByteSize).validate_python(text)) if unit is Unit.BYTES else float(text)
    except (ValueError, ValidationError):
        allowed = "a number of bytes such as 2GiB" if unit is Unit.BYTES else "a number"
        raise UserError(Problem("pick", f"'{text}' cannot be read", allowed)) from None


def to_minimise(objectives: Sequence[Objective], scored: Sequence[ScoredTrial]) -> pareto.Points:
    """Values with maximised objectives negated, `[trials, objectives]`; every trial must have values."""
    signs = np.array([objective.sign for objective in objectives])
    points: pareto.Points = np.array([one.values for one in scored], dtype=float).reshape(len(scored), len(signs))
    return np.asarray(points * signs, dtype=float)


@dataclass(frozen=True)
class HypervolumePoint:
    """Hypervolume of the front after some trials, as a share of the final front's box."""

    trials: int
    seconds: float
    """Since the run began."""
    hypervolume: float


@dataclass(frozen=True)
class RunResults:
    """Everything a table, a report or an export shows of one run."""

    record: RunRecord
    budget: Budget
    spent: Spent
    objectives: tuple[Objective, ...]
    trials: tuple[ScoredTrial, ...]
    """In order of number."""
    front: Front
    importance: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per objective, the share of its variation that each parameter explains; empty where there are too few trials."""

    def counts(self) -> dict[TrialStatus, int]:
        """Trials by status, statuses that no trial has left out."""
        found = [one.trial.status for one in self.trials]
        return {status: found.count(status) for status in TrialStatus if status in found}

    def hypervolume_history(self) -> tuple[HypervolumePoint, ...]:
        """Hypervolume after each trained and ended trial, in order of ending; never falls.

        Each objective is scaled to [0, 1] between its ideal over the complete trials and a reference: the objective's
        `worst`, or, without one, the worst complete value plus a tenth of the range.
        """
        complete = [one for one in self.trials if one.values is not None]
        if not complete:
            return ()
        points = to_minimise(self.objectives, complete)
        ideal, nadir = points.min(axis=0), points.max(axis=0)
        span = np.where(nadir > ideal, nadir - ideal, np.maximum(np.abs(ideal), 1.0))
        reference = nadir + 0.1 * span
        for column, objective in enumerate(self.objectives):
            if objective.worst is not None:
                reference[column] = max(objective.sign * objective.worst, nadir[column])
        width = np.where(reference > ideal, reference - ideal, 1.0)
        ended = sorted(
            (one for one in self.trials if one.trial.status.ended and not one.trial.refused),
            key=lambda one: one.trial.finished_at or 0.0,
        )
        history, volume, so_far = [], 0.0, np.empty((0, len(self.objectives)))
        for count, one in enumerate(ended, start=1):
            if one.values is not None:
                scaled = (to_minimise(self.objectives, [one]) - ideal) / width
                if not np.any(np.all(so_far <= scaled, axis=1)):
                    so_far = np.vstack([so_far, scaled])
                    so_far = so_far[pareto.non_dominated(so_far)]
                    volume = pareto.hypervolume(so_far, np.ones(len(self.objectives)))
            since = (one.trial.finished_at or self.record.created_at) - self.record.created_at
            history.append(HypervolumePoint(count, max(0.0, since), volume))
        return tuple(history)

    def quality_objective(self) -> Objective | None:
        """The first objective of quality, which reports put on the y axis; None where there is none."""
        column = quality_column(self.objectives)
        return None if column is None else self.objectives[column]
