"""The `front` sampler: only what training must show is learned; the rest is known, and the search uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.domain.pareto import layers
from autopeft.search.extras import BOTORCH, missing
from autopeft.search.front.axes import Axes
from autopeft.search.front.beliefs import Beliefs, Unfinished
from autopeft.search.front.earlier import EarlierRuns
from autopeft.search.front.fits import Fits
from autopeft.search.front.noisy import NoisyWorth
from autopeft.search.front.screening import Tried, likely, risks
from autopeft.search.front.study_view import KnownByParams, StudyView
from autopeft.search.front.views import Point, View
from autopeft.search.history import STOPPED

Array = NDArray[np.float64]

STARTUP = 4
"""Trials that fill the space before the model is used."""
_LEAST = 3
"""Complete trials without which there is no model."""
_CHANGED = 100
"""Changes of the best trials in the pool."""
_ROUNDS = 2
_BEST = 6
_AROUND = 8
"""Rounds of local search: so many changes around so many of the best points of the pool."""
_FRESH = 16
"""Draws from which one of the first trials is taken."""
_KEPT = 300
"""Observations that the model sees at most."""

Worth = Callable[[Sequence[Point], Sequence[Point], Array], Array]
"""Of points, beside running ones, below a reference."""


@dataclass
class _History:
    """The trials of a study, by what they teach."""

    complete: list[Point] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)
    stopped: list[Point] = field(default_factory=list)
    """Of those that were stopped early: only where they were heading for is known."""
    heading: list[tuple[float, ...]] = field(default_factory=list)
    variances: list[tuple[float, ...]] = field(default_factory=list)
    infeasible: list[Point] = field(default_factory=list)
    running: list[Point] = field(default_factory=list)
    taken: set[Any] = field(default_factory=set)

    @property
    def tried(self) -> Tried:
        return Tried(self.complete, self.infeasible)


class FrontSampler(BaseSampler):
    """Bayesian optimisation of a front of which all objectives but one or two are known before a trial.

    A Gaussian process with learned noise models each objective that is not known (`surrogate`); of a pool of points
    (random draws, corners, changes of the best trials, then of the best points), the one with the largest expected
    hypervolume improvement per second is tried next (`acquisition`, equation 1), where seconds are known. Trials that
    run already are believed to turn out as drawn from the model. What was infeasible is not tried again nearby. The
    first trials are those of some draws that lie furthest from what was tried, per second as well: a cheap training
    tells as much of the space as an expensive one.

    Where nothing is known of two objectives or more, as of quality and latency, BoTorch's noisy expected hypervolume
    improvement takes over (`noisy`). Without BoTorch, equation 1 serves there too: it is exact for independent beliefs,
    but takes what was observed of the others than the first for the truth.

    In a study of one's own:

        study = optuna.create_study(
            directions=["maximize", "minimize"],
            sampler=FrontSampler(known={1: lambda params: parameters_of(params["rank"], params["layers"])}),
        )

    Every proposal is a function of the seed, the trials and the trial's number.
    """

    def __init__(
        self,
        view: View | None = None,
        *,
        known: KnownByParams | None = None,
        seed: int | None = None,
        startup: int | None = None,
        per_second: bool = True,
        fits: Fits | None = None,
        earlier: EarlierRuns | None = None,
        noisy: bool | None = None,
    ) -> None:
        """A sampler.

        Args:
            view: The space; `None` learns it from the study's trials.
            known: Without a view: by index, objectives that are functions of the parameters.
            seed: Of every draw; `None` draws one.
            startup: Trials that fill the space before the model is used.
            per_second: Whether what a point is worth is divided by its seconds, where those of all are known.
            fits: Remembers what was fitted, for samplers that are built anew for every question.
            earlier: Runs of which the model expects the like, as far as the trials bear them out.
            noisy: Whether BoTorch takes over where two objectives are black boxes; `None` where it is installed.
        """
        self._view = view
        self._known = dict(known or {})
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._startup = STARTUP if startup is None else startup
        self._per_second = per_second
        self._fits = fits or Fits()
        self._earlier = earlier
        self._noisy = not missing(BOTORCH) if noisy is None else noisy
        self._otherwise = RandomSampler(seed=self._seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        view = self._view_of(study, trial.number)
        return {} if view is None else dict(view.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = self._view_of(study, trial.number)
        point = None if view is None else self._propose(view, study, trial.number)
        return {} if point is None else dict(point.params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._otherwise.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._otherwise.reseed_rng()

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
        return StudyView(ended, len(study.directions), self._known, self._seed)

    def _propose(self, view: View, study: Study, number: int) -> Point | None:
        """The point that trial `number` should try; None where nothing new was found."""
        rng = np.random.default_rng([self._seed, number])
        history = _read(view, study, number)
        begun = len(history.complete) + len(history.running) + len(history.stopped)
        if begun < self._startup or len(history.complete) < min(_LEAST, self._startup):
            free = _new([view.drawn(rng) for _ in range(_FRESH)], history.taken)
            return self._first(likely(free, risks(free, history.tried)), history) if free else None
        signs = tuple(1.0 if one is StudyDirection.MINIMIZE else -1.0 for one in study.directions)
        whole = view.everything()
        pool = _new(whole if whole is not None else _pool(view, history, signs, number, rng), history.taken)
        if not pool:
            return None
        pool = likely(pool, risks(pool, history.tried))
        axes, learned = _axes(signs, view.logarithmic, [*history.complete, *history.stopped, *history.running, *pool])
        trials, values = _kept(history.complete, np.array(history.values), axes)
        beliefs = Beliefs(axes, trials, values, learned, view.groups, _unfinished(history), self._fits, self._earlier)
        reference = beliefs.reference([*pool, *history.running])
        worth_of: Worth = beliefs.worth
        if self._noisy and _black_boxes([*trials, *history.running, *pool]) > 1:
            worth_of = NoisyWorth(beliefs, axes, trials, self._seed)
        worth = self._worth(worth_of, pool, history, reference)
        for _ in range(_ROUNDS if whole is None else 0):
            best = np.argsort(-worth, kind="stable")[:_BEST]
            near = [view.changed(pool[index], rng) for index in best for _ in range(_AROUND)]
            fresh = _new(near, history.taken | {point.key for point in pool})
            if not fresh:
                break
            fresh = likely(fresh, risks(fresh, history.tried))
            pool, worth = [*pool, *fresh], np.append(worth, self._worth(worth_of, fresh, history, reference))
        if worth.max() > 0:
            return pool[int(np.argmax(worth))]
        mean, sd = beliefs.of(pool)
        return pool[int(np.argmin(mean[:, 0] - 2.0 * sd[:, 0]))]

    def _worth(self, worth_of: Worth, points: Sequence[Point], history: _History, reference: Array) -> Array:
        return worth_of(points, history.running, reference) / self._seconds(points)

    def _first(self, points: Sequence[Point], history: _History) -> Point:
        """The one that is furthest from all that was begun, per second."""
        begun = [*history.complete, *history.running, *history.stopped]
        away = np.ones(len(points))
        if begun:
            rows, others = (np.array([one.row for one in some]) for some in (points, begun))
            away = np.linalg.norm(rows[:, None] - others[None], axis=2).min(axis=1)
        return points[int(np.argmax(away / self._seconds(points)))]

    def _seconds(self, points: Sequence[Point]) -> Array:
        """Of every point; ones where they are not known of all."""
        known = [point.seconds for point in points if point.seconds]
        return np.array(known) if self._per_second and len(known) == len(points) else np.ones(len(points))


def _black_boxes(points: Sequence[Point]) -> int:
    """Objectives that are known of no point."""
    return sum(
        all(value is None for value in values) for values in zip(*(point.known for point in points), strict=True)
    )


def _read(view: View, study: Study, number: int) -> _History:
    history = _History()
    for trial in study.get_trials(deepcopy=False):
        point = view.point(trial.params) if trial.number != number and trial.params else None
        if point is None:
            continue
        history.taken.add(point.key)
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            history.running.append(point)
        elif trial.state is TrialState.COMPLETE:
            if STOPPED in trial.system_attrs:
                history.stopped.append(point)
                history.heading.append(tuple(trial.values))
                history.variances.append(tuple(trial.system_attrs[STOPPED]))
            elif any(violation > 0 for violation in trial.constraints.values()):
                history.infeasible.append(point)
            elif np.all(np.isfinite(trial.values)):
                history.complete.append(point)
                history.values.append(tuple(trial.values))
    return history


def _pool(
    view: View, history: _History, signs: tuple[float, ...], number: int, rng: np.random.Generator
) -> list[Point | None]:
    order = np.argsort(layers(np.array(signs) * np.array(history.values), until=3 * _BEST), kind="stable")
    best = [history.complete[index] for index in order[: 3 * _BEST]]
    return [*view.spread(number), *[view.changed(best[index % len(best)], rng) for index in range(_CHANGED)]]


def _unfinished(history: _History) -> Unfinished | None:
    """The youngest of the stopped trials: earlier ones say less of where the search is now."""
    if not history.stopped:
        return None
    kept = slice(-_KEPT // 2, None)
    return Unfinished(history.stopped[kept], np.array(history.heading[kept]), np.array(history.variances[kept]))


def _axes(
    signs: tuple[float, ...], logarithmic: tuple[bool, ...], points: Sequence[Point]
) -> tuple[Axes, tuple[int, ...]]:
    """The axes, and the objectives that must be learned: those that are not known of every point."""
    learned = tuple(index for index in range(len(signs)) if any(point.known[index] is None for point in points))
    first = learned[0] if learned else 0
    return Axes((first, *[index for index in range(len(signs)) if index != first]), signs, logarithmic), learned


def _new(points: Sequence[Point | None], taken: set[Any]) -> list[Point]:
    """Those not taken, each key once."""
    found: dict[Any, Point] = {}
    for point in points:
        if point is not None and point.key not in taken:
            found.setdefault(point.key, point)
    return list(found.values())


def _kept(trials: list[Point], values: Array, axes: Axes) -> tuple[list[Point], Array]:
    """The trials that the model sees: all, or the best by layers of the front and every so many of the others."""
    if len(trials) <= _KEPT:
        return trials, values
    losses = np.stack([axes.losses(index, values[:, index]) for index in axes.order], axis=1)
    order = np.argsort(layers(losses, until=_KEPT // 2), kind="stable")
    best, others = order[: _KEPT // 2], np.sort(order[_KEPT // 2 :])
    spread = others[np.linspace(0, len(others) - 1, _KEPT - len(best)).astype(int)]
    rows = np.sort(np.concatenate([best, spread]))
    return [trials[row] for row in rows], values[rows]
