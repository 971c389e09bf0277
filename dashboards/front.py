"""The front: quality against memory, with everything it was chosen from."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.domain import pareto
from autopeft.domain.fidelity import stop_of
from autopeft.domain.objective import Objective
from autopeft.domain.repetition import Estimate, believed
from autopeft.domain.results import RunResults, ScoredTrial
from autopeft.domain.trial import Trial, TrialStatus

from .header import majority, metric_unit, recommended, test_score
from .numbers import label, setting, text_of

MEMORY = "train_peak_bytes"
"""The objective that `max_memory` limits."""


@dataclass(frozen=True)
class FrontPoint:
    """A complete trial in the plane of two objectives, in base units."""

    number: int
    x: float
    y: float
    third: float | None
    """Value of the objective that colours the point, where there is one."""
    on_front: bool
    picks: tuple[str, ...]
    test: float | None
    hover: str
    """What is said about the trial: lines of plain text, not yet escaped."""


@dataclass(frozen=True)
class Infeasible:
    """An infeasible trial, drawn below the axis because it has no quality."""

    number: int
    x: float
    """What it needed; the limit where that is unknown."""
    known: bool
    """Whether `x` is a number of its own."""
    hover: str


@dataclass(frozen=True)
class Stopped:
    """A trial that was stopped early: where it stood at its last rung, which is no result."""

    number: int
    x: float
    y: float
    hover: str


@dataclass(frozen=True)
class FrontRecord:
    """The front in the plane of two objectives; `x` is None where there is only one, then x is the trial number."""

    x: Objective | None
    y: Objective
    third: Objective | None
    points: tuple[FrontPoint, ...]
    stairs: tuple[tuple[float, float], ...]
    """Corners of the front in this plane, from the best x to the best y."""
    infeasible: tuple[Infeasible, ...]
    stopped: tuple[Stopped, ...]
    unplaced: int
    """Infeasible trials that can be put nowhere on the x axis."""
    limit: float | None
    """`max_memory` in bytes, where x is the memory it limits."""
    repeated: bool
    """Whether any candidate was trained more than once: qualities are then posterior means."""
    guess: float | None
    """What the majority class scores, where y is accuracy."""


def front_records(results: RunResults) -> tuple[FrontRecord, ...]:
    """One record per pair of the quality objective and another one."""
    quality = results.quality_objective() or results.objectives[0]
    others = [objective for objective in results.objectives if objective is not quality]
    if not others:
        return (front_record(results, None, quality, None),)
    return tuple(
        front_record(results, other, quality, next((third for third in others if third is not other), None))
        for other in others
    )


def front_record(results: RunResults, x: Objective | None, y: Objective, third: Objective | None) -> FrontRecord:
    """Every complete and infeasible trial in the plane of `x` and `y`."""
    at_x, at_y, at_third = (results.objectives.index(one) if one else None for one in (x, y, third))
    if at_y is None:
        raise ValueError("the record needs an objective for y")
    picks, numbers = recommended(results), results.front.numbers
    beliefs = believed(results.objectives, results.trials)
    points = tuple(
        FrontPoint(
            number=one.trial.number,
            x=float(one.trial.number) if at_x is None else one.values[at_x],
            y=one.values[at_y],
            third=None if at_third is None else one.values[at_third],
            on_front=one.trial.number in numbers,
            picks=picks.get(one.trial.number, ()),
            test=test_score(results, one),
            hover=hover_text(results, one, beliefs.estimates.get(one.trial.number)),
        )
        for one in beliefs.points
        if one.values is not None
    )
    max_memory = results.record.spec.max_memory
    limit = float(max_memory) if max_memory is not None and x is not None and x.name == MEMORY else None
    infeasible = [one for one in results.trials if one.trial.status is TrialStatus.INFEASIBLE]
    placed = [found for one in infeasible if (found := _placed(results, one, x, limit)) is not None]
    return FrontRecord(
        x=x,
        y=y,
        third=third,
        points=points,
        stairs=_stairs(points, x, y),
        infeasible=tuple(placed),
        stopped=tuple(still for one in results.trials if (still := _stopped(results, one, x, y)) is not None),
        unplaced=len(infeasible) - len(placed),
        limit=limit,
        repeated=bool(beliefs.estimates),
        guess=majority(results) if y.name == results.record.task.metric else None,
    )


def hover_text(results: RunResults, one: ScoredTrial, estimate: Estimate | None = None) -> str:
    """Trial number and status, all numbers with the test score, all parameters; one a line, plain text.

    With `estimate`, that of the candidate's quality, it says that it is a posterior mean, and what was observed.
    """
    trial = one.trial
    lines = [f"Trial {trial.number} · {status_text(results, trial)}"]
    measured = trial.measurements
    for index, objective in enumerate(results.objectives):
        value = one.values[index] if one.values else objective(measured) if measured else math.nan
        if math.isfinite(value):
            there = " there" if objective.is_quality and trial.status is TrialStatus.STOPPED_EARLY else ""
            quality = estimate is not None and objective is results.quality_objective()
            there = ", posterior mean" if quality else there
            lines.append(f"{label(objective)}{there}: {text_of(value, objective.unit)}")
            if quality and estimate is not None:
                lines.append(observed_text(estimate, objective))
    score = test_score(results, one)
    if score is not None:
        metric = results.record.task.metric
        lines.append(f"Test {metric}: {text_of(score, metric_unit(metric))}")
    if trial.failure is not None:
        lines.append(_short(trial.failure.text))
    lines += [f"{name} = {_short(setting(value))}" for name, value in trial.parameters.items()]
    return "\n".join(lines)


def status_text(results: RunResults, trial: Trial) -> str:
    """A trial's status; of one that was stopped early, at which rung: `stopped at 1/3`."""
    stop = stop_of(trial, results.record.spec.training.rungs)
    return trial.status.value.replace("_", " ") if stop is None else f"stopped at {stop.share}"


def observed_text(estimate: Estimate, objective: Objective) -> str:
    """What was observed of a candidate: `Observed: 64.2 %`, `Observed: 64.2 % ± 1.1 % in 3 trainings`."""
    text = f"Observed: {text_of(estimate.mean, objective.unit)}"
    if estimate.spread is None:
        return text
    return f"{text} ± {text_of(estimate.spread, objective.unit)} in {estimate.count} trainings"


def escaped(lines: str) -> str:
    """Plain lines as Plotly's hover markup, in which nothing of theirs is markup; the first line is bold."""
    first, *rest = html.escape(lines).split("\n")
    return "<br>".join([f"<b>{first}</b>", *rest])


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _stopped(results: RunResults, one: ScoredTrial, x: Objective | None, y: Objective) -> Stopped | None:
    measured, number = one.trial.measurements, one.trial.number
    if one.trial.status is not TrialStatus.STOPPED_EARLY or measured is None:
        return None
    across, up = float(number) if x is None else x(measured), y(measured)
    if not (math.isfinite(across) and math.isfinite(up)):
        return None
    return Stopped(number, across, up, hover_text(results, one))


def _placed(results: RunResults, one: ScoredTrial, x: Objective | None, limit: float | None) -> Infeasible | None:
    hover = hover_text(results, one)
    if x is None:
        return Infeasible(one.trial.number, float(one.trial.number), True, hover)
    measured, failure = one.trial.measurements, one.trial.failure
    value = x(measured) if measured is not None else math.nan
    if math.isfinite(value):
        return Infeasible(one.trial.number, value, True, hover)
    if limit is None:
        return None
    if failure is not None and failure.violation is not None:
        return Infeasible(one.trial.number, limit * (1 + failure.violation), True, hover)
    return Infeasible(one.trial.number, limit, False, hover)


def _stairs(points: Sequence[FrontPoint], x: Objective | None, y: Objective) -> tuple[tuple[float, float], ...]:
    if not points:
        return ()
    plane = np.array([(point.x, point.y) for point in points], dtype=float)
    signs = np.array([1.0 if x is None else x.sign, y.sign])
    best = np.unique((plane * signs)[pareto.non_dominated(plane * signs)], axis=0) * signs
    return tuple((float(across), float(up)) for across, up in best)
