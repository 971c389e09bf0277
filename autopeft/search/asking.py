"""Our ask and tell over Optuna's samplers: every proposal is a pure function of seed, history and number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.domain.candidate import Setting
from autopeft.domain.objective import Objective
from autopeft.domain.ports import Proposal
from autopeft.domain.results import ScoredTrial
from autopeft.domain.space import Space
from autopeft.domain.start import ORIGIN, StartingPoint
from autopeft.domain.trial import TrialStatus
from autopeft.search.encoding import Encoded, encode, enumerate_values, suggest
from autopeft.search.feasibility import Feasibility
from autopeft.search.fidelity import Course, Outlook, course, outlook
from autopeft.search.history import STOPPED, History, frozen

_RANDOM_TRIES = 32
"""Draws at random where the sampler, asked several times, had nothing new that is likely to fit."""
_MANY_RANDOM_TRIES = 500
"""Draws where the space is too large to go through."""
_ENUMERABLE = 50_000
"""Largest space that is gone through for what is left of it."""
_RISK = 0.3
"""Proposals that are infeasible with a greater probability are taken only where there is no other."""
_CONSTRAINT = "memory"
_FEASIBLE = -1.0
_UNKNOWN_VIOLATION = 1.0
_LEAST_VIOLATION = 1e-3
"""A trial that is infeasible stays so to the sampler, however little it was over."""
_STOPPED_VIOLATION = _LEAST_VIOLATION / 2
"""A trial that was stopped stands behind every complete one and before every infeasible one."""
_WITH_COURSE = (TrialStatus.COMPLETE, TrialStatus.STOPPED_EARLY)


@dataclass(frozen=True, eq=False)
class _Told:
    """What the sampler remembers of one trial."""

    digest: str
    status: TrialStatus
    params: dict[str, Encoded]
    distributions: dict[str, BaseDistribution]
    state: dict[str, Any]
    values: tuple[float, ...] | None = None
    violation: float | None = None
    course: Course = field(default_factory=dict)
    """Values at the rungs, of a trial that completed or was stopped."""


_Seen = tuple[_Told, tuple[float, ...] | None, float | None, tuple[float, ...]]
"""What a frozen trial was made of: the told trial, its values, its violation and the variances of its values."""


class HistorySampler:
    """Implements `autopeft.domain.ports.Sampler` over any Optuna sampler.

    Nothing outlives a question but the trials: the Optuna sampler is built anew for each, with a seed of its own, over
    a study made of the trials told so far. So a resumed search goes on as an undisturbed one would.
    """

    def __init__(
        self,
        build: Callable[[int], BaseSampler],
        space: Space,
        objectives: Sequence[Objective],
        seed: int,
        tries: int,
        keeps_state: bool = False,
        avoids_infeasible: bool = True,
    ) -> None:
        """`tries`: how often the Optuna sampler is asked, each time with another seed, for something new."""
        self._build = build
        self._space = space
        self._objectives = tuple(objectives)
        self._directions = [
            StudyDirection.MINIMIZE if objective.sign > 0 else StudyDirection.MAXIMIZE for objective in objectives
        ]
        self._seed = seed
        self._tries = tries
        self._keeps_state = keeps_state
        self._avoids_infeasible = avoids_infeasible
        self._told: dict[int, _Told] = {}
        self._only_asked: set[int] = set()
        self._frozen: dict[int, tuple[_Seen, FrozenTrial]] = {}
        size = space.size()
        self._enumerable = size is not None and size <= _ENUMERABLE
        self._draws = tries + (_RANDOM_TRIES if self._enumerable else _MANY_RANDOM_TRIES)

    def ask(self, number: int) -> Proposal | None:
        """A candidate that is new, see `Sampler.ask`; asking again for a number that was never told asks afresh.

        Raises:
            ValueError: where the number was told already.
        """
        taken = self._taken(number)
        feasibility = self._feasibility()
        least, best, state = math.inf, None, {}
        for attempt, (values, attrs) in enumerate(self._drawn(self._past(), number)):
            if attempt == 0 and self._keeps_state:
                state = attrs
            if attempt >= self._tries + _RANDOM_TRIES and best is not None:
                break
            candidate = self._space.resolve(values)
            if candidate is None or candidate.digest in taken:
                continue
            params, distributions = encode(self._space.parameters, values)
            risk = 0.0 if feasibility is None else feasibility.risk(params)
            if risk < least:
                told = _Told(candidate.digest, TrialStatus.PENDING, params, distributions, state)
                least, best = risk, (told, Proposal(parameters=values, candidate=candidate, sampler_state=state))
            if risk <= _RISK:
                break
        if best is None:
            return None
        self._told[number], proposal = best
        self._only_asked.add(number)
        return proposal

    def place(self, number: int, points: Sequence[StartingPoint]) -> tuple[StartingPoint, Proposal] | None:
        """The first of these points whose candidate is new, as if the sampler had drawn it; None where none is.

        Raises:
            ValueError: where the number was told already.
        """
        taken = self._taken(number)
        point = next((one for one in points if one.candidate.digest not in taken), None)
        if point is None:
            return None
        # What a sampler notes of its own trials (the generation of NSGA-II) belongs to this one too.
        kept = self._draw(self._build, self._draw_seed(number, 0), self._past(), number)[1] if self._keeps_state else {}
        state = {**kept, ORIGIN: point.origin}
        params, distributions = encode(self._space.parameters, point.parameters)
        self._told[number] = _Told(point.candidate.digest, TrialStatus.PENDING, params, distributions, state)
        self._only_asked.add(number)
        return point, Proposal(parameters=dict(point.parameters), candidate=point.candidate, sampler_state=state)

    def _taken(self, number: int) -> set[str]:
        """Digests of all trials but this one, which is forgotten where it was asked for and never told."""
        if number in self._told and number not in self._only_asked:
            raise ValueError(f"trial {number} was told already")
        self._told.pop(number, None)
        self._only_asked.discard(number)
        return {told.digest for told in self._told.values()}

    def tell(self, scored: ScoredTrial) -> None:
        """Learn where a trial stands now, however it ended."""
        trial = scored.trial
        params, distributions = encode(self._space.parameters, trial.parameters)
        finite = scored.values is not None and all(math.isfinite(value) for value in scored.values)
        violation = trial.failure.violation if trial.failure else None
        self._told[trial.number] = _Told(
            digest=trial.digest,
            status=trial.status,
            params=params,
            distributions=distributions,
            state=trial.sampler_state,
            values=scored.values if finite else None,
            violation=violation if violation is not None and math.isfinite(violation) else None,
            course=course(trial, self._objectives) if trial.status in _WITH_COURSE else {},
        )
        self._only_asked.discard(trial.number)

    def replay(self, history: Sequence[ScoredTrial]) -> None:
        """Learn a stored history."""
        for scored in history:
            self.tell(scored)

    def _drawn(self, past: list[FrozenTrial], number: int) -> Iterator[tuple[dict[str, Setting], dict[str, Any]]]:
        """Values in the order they are tried, with the attributes that the sampler gave the trial."""
        for attempt in range(self._draws):
            seed = self._draw_seed(number, attempt)
            yield self._draw(self._build if attempt < self._tries else _random, seed, past, number)
        if self._enumerable:
            for values in enumerate_values(self._space.parameters):
                yield values, {}

    def _draw(
        self, build: Callable[[int], BaseSampler], seed: int, past: list[FrozenTrial], number: int
    ) -> tuple[dict[str, Setting], dict[str, Any]]:
        history = History(past, self._directions, next_number=number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = Study(study_name="search", storage=history, sampler=build(seed)).ask()
            values = suggest(trial, self._space.parameters)
        return values, dict(history.get_trial(trial._trial_id).system_attrs)

    def _draw_seed(self, number: int, attempt: int) -> int:
        return int(np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)[0])

    def _feasibility(self) -> Feasibility | None:
        """What infeasible trials taught; None where there are none."""
        bad = {number for number, told in self._told.items() if told.status is TrialStatus.INFEASIBLE}
        known = [number for number, told in sorted(self._told.items()) if number in bad or told.values is not None]
        if not bad or not self._avoids_infeasible:
            return None
        trials = [self._told[number].params for number in known]
        return Feasibility(self._space.parameters, trials, [number in bad for number in known])

    def _past(self) -> list[FrozenTrial]:
        """The trials as Optuna is to see them, in order of number; those that taught nothing are failed ones.

        Out of memory is a complete trial that violates a constraint (as a failure, it would be forgotten, and the
        sampler would go there again and again). Its values are the worst that any trial had: samplers that rank
        feasible trials first never look at them, a Gaussian process sees a slope away from there. One that was stopped
        early likewise violates the constraint, by less; its values are those it was heading for (`outlook`).
        """
        outlooks = self._outlooks()
        constrained = bool(outlooks) or any(told.status is TrialStatus.INFEASIBLE for told in self._told.values())
        penalty = self._worst()
        return [
            self._freeze(number, told, penalty, constrained, outlooks.get(number))
            for number, told in sorted(self._told.items())
        ]

    def _outlooks(self) -> dict[int, Outlook]:
        """What stopped trials were heading for, by number; those of which nothing can be said are left out."""
        stopped = {number: one for number, one in self._told.items() if one.status is TrialStatus.STOPPED_EARLY}
        complete = [(one.course, one.values) for _, one in sorted(self._told.items()) if one.values is not None]
        found = {number: outlook(one.course, complete) for number, one in stopped.items()}
        return {number: one for number, one in found.items() if one is not None}

    def _worst(self) -> tuple[float, ...]:
        complete = [told.values for told in self._told.values() if told.values is not None]
        if not complete:
            return tuple(objective.worst or 0.0 for objective in self._objectives)
        return tuple(
            objective.sign * max(objective.sign * values[index] for values in complete)
            for index, objective in enumerate(self._objectives)
        )

    def _freeze(
        self, number: int, told: _Told, penalty: tuple[float, ...], constrained: bool, heading: Outlook | None
    ) -> FrozenTrial:
        values: tuple[float, ...] | None = None
        violation: float | None = None
        variance: tuple[float, ...] = ()
        if told.status is TrialStatus.INFEASIBLE:
            values = told.values or penalty
            violation = _UNKNOWN_VIOLATION if told.violation is None else max(told.violation, _LEAST_VIOLATION)
        elif told.values is not None:
            values, violation = told.values, _FEASIBLE if constrained else None
        elif heading is not None:
            values, violation, variance = heading.values, _STOPPED_VIOLATION, heading.variance
        seen = (told, values, violation, variance)
        known_as = self._frozen.get(number)
        if known_as is not None and known_as[0] == seen:
            return known_as[1]
        unknown = TrialState.FAIL if told.status.ended else TrialState.RUNNING
        trial = frozen(
            number,
            unknown if values is None else TrialState.COMPLETE,
            told.params,
            told.distributions,
            values,
            told.state | {STOPPED: list(variance)} if variance else told.state,
            None if violation is None else {_CONSTRAINT: violation},
        )
        self._frozen[number] = (seen, trial)
        return trial


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)
