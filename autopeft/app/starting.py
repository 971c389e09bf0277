"""What a search begins with: a person's own candidates, points of earlier fronts, and the guesses of its space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from autopeft.app.candidate_file import check_fit, read_candidate
from autopeft.app.folder import OWN_STORE, RunFolder, find_run
from autopeft.app.objectives import objectives_of
from autopeft.app.peft_config import is_peft_config, read_lora
from autopeft.app.results import open_run
from autopeft.domain.candidate import Candidate
from autopeft.domain.carrying import rebound
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.domain.objective import Objective, Unit
from autopeft.domain.pareto import non_dominated
from autopeft.domain.results import RunRecord, quality_column, score
from autopeft.domain.space import FloatDomain, IntDomain
from autopeft.domain.start import (
    START_WITH,
    WARM_START,
    EarlierRun,
    EarlierTrial,
    Start,
    StartingPoint,
    merged,
    most_of,
    order,
)
from autopeft.domain.trial import Trial
from autopeft.spaces.bound import BoundSpace
from autopeft.spaces.expressing import Expressed, express
from autopeft.spaces.file import LearningRateParameter, reference
from autopeft.spaces.guesses import guesses

if TYPE_CHECKING:
    from autopeft.app.planning import Plan

_TOLD = 3
"""Points of a front of which it is said, one by one, why they are left out."""
_RATIOS = (Unit.BYTES, Unit.COUNT, Unit.SECONDS)


def make_start(plan: Plan, runs: Path, store_url: str | None, say: Callable[[str], None]) -> Start:
    """What the search of a plan begins with; `say` is told what a person should know.

    Args:
        plan: A search that can start.
        runs: Folder in which earlier runs are looked for by name.
        store_url: Database of earlier runs that are not in their own folder.
        say: Takes sentences.

    Raises:
        UserError: with every mistake: a file that is no candidate of the space, a run that is not there or has nothing
            to teach.
    """
    spec, layout, space = plan.spec, plan.inspection.layout, plan.space
    problems: list[Problem] = []
    own: list[StartingPoint] = []
    fronts: list[list[StartingPoint]] = []
    earlier: list[EarlierRun] = []
    for name in spec.start_with:
        try:
            own.append(own_point(Path(name), layout, space, say))
        except UserError as error:
            problems += error.problems
    for name in spec.warm_start:
        try:
            points, run = _taught(name, plan, runs, store_url, say)
            fronts.append(points)
            earlier += [run] if run is not None else []
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    guessed, notes = guesses(space, layout.hidden_size) if spec.first_guesses else ([], [])
    for note in notes:
        say(note)
    # Of several fronts in turn, so that each has its say in a small budget.
    in_turn = [one for one in chain.from_iterable(zip_longest(*fronts)) if one is not None]
    start = Start(points=merged([own, in_turn, guessed]), most=most_of(spec.budget.trials), earlier=tuple(earlier))
    if start.points:
        say(_summary(start, spec.budget.trials))
    return start


def _summary(start: Start, trials: int | None) -> str:
    asked = [one for one in start.points if one.asked_for]
    others = [one for one in start.points if not one.asked_for][: start.most]
    origins = [one.origin for one in (*asked, *others)]
    counted = ", ".join(f"{origins.count(origin)} ({origin})" for origin in dict.fromkeys(origins))
    left = len(start.points) - len(origins)
    share = "a third of the budget" if trials is not None else f"{start.most} trials"
    rest = f"; {left} more would take more than {share}" if left else ""
    return f"Tried first: {counted or 'nothing'}{rest}."


def own_point(path: Path, layout: ModelLayout, space: BoundSpace, say: Callable[[str], None]) -> StartingPoint:
    """The candidate of a file as a point of the space; what the file leaves open is as the space has it.

    Raises:
        UserError: where it cannot be read, or the space has not what it says; names the parameter and what is allowed.
    """
    if is_peft_config(path):
        insertion = read_lora(path, layout)
        said = {*insertion.settings}
        candidate = Candidate(insertions=(insertion,), learning_rate=1.0)
        with_rate = False
        check_fit(candidate, layout)
    else:
        candidate = read_candidate(path, layout)
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        written = written.get("candidate", written)
        said = _said(written)
        with_rate = "learning_rate" in written
    if with_rate:
        said.add("learning_rate")
    else:
        rate = middle_rate(candidate, space)
        candidate = candidate.model_copy(update={"learning_rate": rate})
        say(f"{path} says no learning rate: {rate:.3g} is taken, the middle of what the space allows.")
    try:
        found = express(candidate, space)
    except UserError as error:
        raise UserError(*(_placed(path, problem) for problem in error.problems)) from None
    changed = [one for one in found.changes if one.setting in said]
    if changed:
        raise UserError(
            *(
                Problem(
                    f"{path}: {one.place}",
                    f"{one.setting} is {one.wanted}, which the space '{space.name}' has not",
                    one.allowed,
                    f"The nearest is {one.found}.",
                )
                for one in changed
            )
        )
    return StartingPoint(parameters=found.parameters, candidate=found.candidate, origin=START_WITH)


def _placed(path: Path, problem: Problem) -> Problem:
    return Problem(f"{path}: {problem.where}", problem.found, problem.allowed, problem.next_step)


def _said(written: dict[str, Any]) -> set[str]:
    """Names of the settings that a file of a candidate gives."""
    parts = [*(written.get("insertions") or ()), written.get("pruning"), written.get("policy")]
    return {key for part in parts if isinstance(part, dict) for key in part.get("settings") or {}}


def middle_rate(candidate: Candidate, space: BoundSpace) -> float:
    """The learning rate in the middle of what the space allows the candidate's first method."""
    written = space.file.candidate.learning_rate
    name = reference(written)
    if name is None:
        return float(written)
    if isinstance(space.file.parameters[name], LearningRateParameter):
        method = candidate.insertions[0].method if candidate.insertions else ""
        ranges = [one.methods[method].facts.learning_rates for one in space.insertions if method in one.methods]
        low, high = ranges[0] if ranges else (1e-4, 1e-2)
        return math.sqrt(low * high)
    domain = next(one.domain for one in space.parameters if one.name == name)
    if isinstance(domain, FloatDomain | IntDomain):
        log = domain.log and domain.low > 0
        return math.sqrt(domain.low * domain.high) if log else 0.5 * (domain.low + domain.high)
    return float(domain.values[len(domain.values) // 2])


def _taught(
    name: str, plan: Plan, runs: Path, store_url: str | None, say: Callable[[str], None]
) -> tuple[list[StartingPoint], EarlierRun | None]:
    """The front of an earlier run as points of this space, best first, and what its trials teach."""
    record, trials = _read(name, plan, runs, store_url, say)
    objectives = _scored_by(plan, record, trials)
    scored = [score(trial, objectives) for trial in trials]
    complete = [one for one in scored if one.values is not None]
    if not complete:
        raise UserError(
            Problem(
                "warm_start", f"no trial of the run '{name}' completed", "", f"See `autopeft status {record.name}`."
            )
        )
    losses = np.array([[_loss(*pair) for pair in zip(objectives, one.values or (), strict=True)] for one in complete])
    # Of trials with equal values the first stands for all, as in `Front.of`.
    distinct = np.sort(np.unique(losses, axis=0, return_index=True)[1])
    on_front = distinct[non_dominated(losses[distinct])]
    front = [int(on_front[index]) for index in order(losses[on_front])]
    carried: dict[int, Expressed] = {}
    why: dict[int, str] = {}
    for index, one in enumerate(complete):
        try:
            candidate = rebound(one.trial.candidate, record.layout, plan.inspection.layout)
            carried[index] = express(candidate, plan.space)
        except UserError as error:
            why[index] = str(error.problems[0])
    for index in [index for index in front if index in why][:_TOLD]:
        number = complete[index].trial.number
        say(f"Trial {number}, on the front of {record.name}, is left out: {why[index]}.")
    if not any(index in carried for index in front):
        say(f"No point of the front of {record.name} is a candidate of this space.")
    origin = f"{WARM_START} {record.name}"
    points = [
        StartingPoint(parameters=carried[index].parameters, candidate=carried[index].candidate, origin=origin)
        for index in front
        if index in carried
    ]
    column = quality_column(objectives)
    if column is None or not carried or plan.spec.sampler.name != "front":
        return points, None
    if why:
        say(f"{len(carried)} of the {len(complete)} complete trials of {record.name} are candidates of this space.")
    return points, EarlierRun(
        name=record.name,
        quality=objectives[column].name,
        maximised=objectives[column].sign < 0,
        trials=tuple(
            EarlierTrial(
                parameters=one.parameters,
                values=dict(
                    zip((each.name for each in objectives), complete[index].values or (), strict=True),
                ),
            )
            for index, one in carried.items()
        ),
    )


def _read(
    name: str, plan: Plan, runs: Path, store_url: str | None, say: Callable[[str], None]
) -> tuple[RunRecord, list[Trial]]:
    try:
        folder = (
            RunFolder(Path(name)) if Path(name).name != name and RunFolder(Path(name)).exists else find_run(runs, name)
        )
    except UserError as error:
        raise UserError(*(Problem("warm_start", *_rest(one)) for one in error.problems)) from None
    with open_run(folder, None if folder.store() == OWN_STORE else store_url) as store:
        run = store.open(folder.name)
        if run is None:
            raise UserError(
                Problem("warm_start", f"the run '{name}' is not in its database", "", "See `autopeft list`.")
            )
        record, trials, budget, spent = run.record, run.trials(), run.budget(), run.spent()
    if budget.used_up_by(spent) is None:
        ended = sum(trial.status.ended for trial in trials)
        say(f"The run {record.name} is not finished: its {ended} trials so far are taken.")
    return record, trials


def _rest(problem: Problem) -> tuple[str, str, str]:
    return problem.found, problem.allowed, problem.next_step


def _scored_by(plan: Plan, record: RunRecord, trials: Sequence[Trial]) -> tuple[Objective, ...]:
    """This search's objectives as far as the earlier trials can be scored by them; its quality stands for ours."""
    measured = [trial.measurements for trial in trials if trial.measurements is not None and trial.status == "complete"]
    found: dict[str, Objective] = {}
    for objective in plan.objectives:
        if all(math.isfinite(objective(one)) for one in measured):
            found[objective.name] = objective
        elif objective.is_quality:
            theirs = objectives_of(record.spec, record.task)
            column = quality_column(theirs)
            if column is not None:
                found.setdefault(theirs[column].name, theirs[column])
    return tuple(found.values())


def _loss(objective: Objective, value: float) -> float:
    """On the scale on which differences count: ratios of bytes, counts and seconds."""
    if objective.unit in _RATIOS:
        value = math.log(max(value, 1e-300))
    return objective.sign * value


__all__ = ["make_start", "middle_rate", "own_point"]
