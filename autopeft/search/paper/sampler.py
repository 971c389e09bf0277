"""The `autopeft` sampler: the paper's own search, in which every objective is a black box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.domain.pareto import non_dominated
from autopeft.search.front.screening import RISK, Tried, risks
from autopeft.search.front.study_view import StudyView
from autopeft.search.front.views import Point, View
from autopeft.search.history import STOPPED
from autopeft.search.paper.copula import normal_scores
from autopeft.search.paper.inputs import Inputs
from autopeft.search.paper.models import Fit, NoisyImprovement, Nuts
from autopeft.search.paper.neighbours import Climb, climb, neighbours

Array = NDArray[np.float64]

STARTUP = 6
"""Trials at random before the model is used: as with the other samplers. The paper's script has 20, its README 100."""
_LEAST = 3
"""Complete trials without which there is no model."""
_TRIES = 20
"""Times a start is looked for around the front, per start."""
_MARGIN = 0.1
"""The reference lies this share of the range behind the worst."""

BATCH = "autopeft:batch"
"""System attribute of the first trial of a batch: the parameters of all of them."""
RECORDED = "autopeft:recorded"
"""System attribute of a trial that is learned from as if it had these parameters, see `Effort.as_published`."""


@dataclass(frozen=True)
class Effort:
    """How the search goes about it; the numbers are those of the released code."""

    fit: Fit = field(default_factory=Nuts)
    batch: int = 4
    """Proposals of one model."""
    restarts: int = 10
    """Climbs per proposal."""
    evaluations: int = 2000
    """Points that all climbs of one proposal look at."""
    draws: int = 64
    """Quasi-random draws per model of a mixture, for the acquisition; of three objectives and more, a quarter."""
    as_published: bool = False
    """Whether the start of the best climb is trained and its end recorded, as the released code does by mistake.

    For benchmarks alone: the surrogates then learn scores of other configurations than the ones that were trained."""


@dataclass
class _Trials:
    """The trials of a study, by what they teach."""

    complete: list[Point] = field(default_factory=list)
    learned: list[Mapping[str, Any]] = field(default_factory=list)
    """Parameters that the surrogates take complete trials for: their own."""
    values: list[tuple[float, ...]] = field(default_factory=list)
    infeasible: list[Point] = field(default_factory=list)
    running: list[Point] = field(default_factory=list)
    taken: set[Any] = field(default_factory=set)


class PaperSampler(BaseSampler):
    """AutoPEFT's search: Zhou et al., TACL 2024 (arXiv:2301.12132), section 3.2, as its released code has it.

    Every objective has a Gaussian process of its own with the SAAS prior (`models.Nuts`) over the parameters, its
    outcomes transformed to normal scores (`copula`). A batch of four is chosen one after another by the noisy expected
    hypervolume improvement (`models.NoisyImprovement`) beside what runs and what is chosen already. It is climbed from
    random neighbours of the front, from neighbour to neighbour that differs in one parameter (`neighbours.climb`).

    Repaired: the released code trains the start of the best climb and records its end; here the end is trained. What
    was tried is never proposed again, what is infeasible is not tried nearby, and failed trials teach nothing. A batch
    is kept with its first trial, so that the other three ask no model.

    In a study of one's own: `optuna.create_study(directions=[...], sampler=PaperSampler(seed=1))`. Every proposal is a
    function of the seed, the trials and the trial's number.
    """

    def __init__(
        self,
        view: View | None = None,
        *,
        seed: int | None = None,
        startup: int | None = None,
        effort: Effort | None = None,
    ) -> None:
        """A sampler.

        Args:
            view: The space; `None` learns it from the study's trials.
            seed: Of every draw; `None` draws one.
            startup: Trials at random before the model is used.
            effort: Surrogate, batch and climbs.
        """
        self._view = view
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._startup = STARTUP if startup is None else startup
        self._effort = effort or Effort()
        self._otherwise = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        view = self._view_of(study, trial.number)
        return {} if view is None else dict(view.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = self._view_of(study, trial.number)
        if view is None:
            return {}
        trials = _read(view, study, trial.number)
        left = _left(view, study, trial.number, trials)
        if left is not None:
            chosen, recorded = left
        elif len(trials.complete) + len(trials.running) < self._startup or len(trials.complete) < _LEAST:
            return {}  # drawn by Optuna, as all of the `random` sampler's
        else:
            climbs = self._batch(view, study, trial.number, trials)
            if not climbs:
                return {}
            members = [self._member(one) for one in climbs]
            study._storage.set_trial_system_attr(trial._trial_id, BATCH, members)
            chosen, recorded = members[0]
        if recorded is not None:
            study._storage.set_trial_system_attr(trial._trial_id, RECORDED, recorded)
        return dict(chosen)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._otherwise.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._otherwise.reseed_rng()

    def _member(self, found: Climb) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What is trained, and what is learned from in its place."""
        if self._effort.as_published:
            return dict(found.start.params), dict(found.end.params)
        return dict(found.end.params), None

    def _view_of(self, study: Study, number: int) -> View | None:
        """The space; None while too few trials showed it."""
        if self._view is not None:
            return self._view
        ended = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if trial.number != number and trial.params
        ]
        if len(ended) < max(self._startup, _LEAST):
            return None
        return StudyView(ended, len(study.directions), {}, self._seed)

    def _batch(self, view: View, study: Study, number: int, trials: _Trials) -> list[Climb]:
        """The climbs whose ends (or starts) are the next trials, at most a batch; empty where nothing new was found."""
        effort, rng = self._effort, np.random.default_rng([self._seed, number])
        inputs, tried = Inputs(view.distributions), Tried(trials.complete, trials.infeasible)
        signs = np.array([-1.0 if one is StudyDirection.MINIMIZE else 1.0 for one in study.directions])
        scores = np.stack([normal_scores(column) for column in (signs * np.array(trials.values)).T], axis=1)
        rows = inputs.rows(trials.learned)
        worth_of = _acquisition(effort, rows, scores, int(rng.integers(2**31)))
        front = [trials.complete[index] for index in np.flatnonzero(non_dominated(-scores))]
        taken, chosen = set(trials.taken), list[Climb]()
        waiting = [point.params for point in trials.running]

        def around(point: Point) -> list[Point]:
            return [one for one in neighbours(view, point, rng) if one.key not in taken]

        def worth(points: Sequence[Point]) -> Array:
            return np.where(risks(points, tried) > RISK, -np.inf, worth_of(inputs.rows([one.params for one in points])))

        for _ in range(effort.batch):
            starts = _starts(view, front, taken, tried, rng, effort.restarts)
            if not starts:
                break
            worth_of.wait_for(inputs.rows(waiting))
            found = climb(starts, around, worth, effort.evaluations)
            best = max(found, key=lambda one: one.worth)
            chosen.append(best)
            taken.add(best.start.key if effort.as_published else best.end.key)
            waiting.append(best.end.params)
        return chosen


def _acquisition(effort: Effort, rows: Array, scores: Array, seed: int) -> NoisyImprovement:
    """The acquisition after these observations, `rows [n, d]`, `scores [n, m]` to be maximised."""
    models = [effort.fit(rows, column, seed + index) for index, column in enumerate(scores.T)]
    worst, best = scores.min(axis=0), scores.max(axis=0)
    span = np.where(best > worst, best - worst, 1.0)
    draws = effort.draws if scores.shape[1] < 3 else max(1, effort.draws // 4)
    return NoisyImprovement(models, rows, worst - _MARGIN * span, draws, seed)


def _starts(
    view: View, front: Sequence[Point], taken: set[Any], tried: Tried, rng: np.random.Generator, count: int
) -> list[Point]:
    """Random neighbours of points of the front that are new and likely to be feasible; random points where none is."""
    found: dict[Any, Point] = {}

    def look(one: Point | None) -> None:
        if one is not None and one.key not in taken:
            found.setdefault(one.key, one)

    for _ in range(_TRIES):
        for _ in range(count):
            beside = neighbours(view, front[int(rng.integers(len(front)))], rng)
            look(beside[int(rng.integers(len(beside)))] if beside else None)
        if len(found) >= count:
            break
    for _ in range(_TRIES if not found else 0):
        look(view.drawn(rng))
    points = list(found.values())[:count]
    if not points:
        return []
    risk = risks(points, tried)
    return [point for point, one in zip(points, risk, strict=True) if one <= max(RISK, float(risk.min()))]


def _left(
    view: View, study: Study, number: int, trials: _Trials
) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """What the batch of an earlier trial has for this one; None where it is over, or was overtaken by events."""
    begun = [
        trial for trial in study.get_trials(deepcopy=False) if trial.number < number and BATCH in trial.system_attrs
    ]
    if not begun:
        return None
    first = max(begun, key=lambda trial: trial.number)
    for chosen, recorded in first.system_attrs[BATCH][number - first.number :]:
        point = view.point(chosen)
        if point is not None and point.key not in trials.taken:
            return chosen, recorded
    return None


def _read(view: View, study: Study, number: int) -> _Trials:
    found = _Trials()
    for trial in study.get_trials(deepcopy=False):
        point = view.point(trial.params) if trial.number != number and trial.params else None
        if point is None:
            continue
        found.taken.add(point.key)
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            found.running.append(point)
        elif trial.state is TrialState.COMPLETE and STOPPED not in trial.system_attrs:
            if any(violation > 0 for violation in trial.constraints.values()):
                found.infeasible.append(point)
            elif np.all(np.isfinite(trial.values)):
                found.complete.append(point)
                found.learned.append(trial.system_attrs.get(RECORDED, point.params))
                found.values.append(tuple(trial.values))
    return found
