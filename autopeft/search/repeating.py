"""A share of the budget for training promising candidates again, with another seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from autopeft.domain import pareto
from autopeft.domain.objective import Objective
from autopeft.domain.ports import Proposal, Sampler
from autopeft.domain.repetition import Shrinkage, believed, pooled_noise
from autopeft.domain.results import ScoredTrial, quality_column, to_minimise
from autopeft.domain.trial import TrialStatus

LEAST = 4
"""Complete candidates before anything is repeated."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_LEAST_GAIN = 1e-9
"""Of the hypervolume's box; rounding gives less."""


class RepeatingSampler:
    """Implements `autopeft.domain.ports.Sampler` over another one.

    At most `share` of the trials, and of the optimiser steps of all trials, are repetitions. As soon as one more is
    within that, the candidate is repeated of which the front is expected to gain most. That is the knowledge gradient
    (Frazier, Powell and Dayanik 2008) with the hypervolume H in place of the maximum: with posterior variance v of its
    quality (`Shrinkage`) and noise n, one more observation moves its posterior mean m by s Z, s = v / sqrt(v + n) and
    Z standard normal, and the front of posterior means that is chosen then is worth E[H(m + s Z)] against H(m) now,
    by Gauss-Hermite quadrature. It is 0 where nothing that could be seen would change who is on the front.

    The r-th repetition of every candidate has the same seed, so that repetitions differ by what they are, as first
    trainings do. Everything is a function of the trials told and asked so far.
    """

    def __init__(self, sampler: Sampler, objectives: Sequence[Objective], share: float, seed: int) -> None:
        self._sampler = sampler
        self._objectives = tuple(objectives)
        self._share = share
        self._seed = seed
        self._told: dict[int, ScoredTrial] = {}
        self._asked: dict[int, str] = {}
        """Digests of proposals that were not told of since, by number."""

    def ask(self, number: int) -> Proposal | None:
        """A repetition where one is due, else what the other sampler proposes."""
        self._asked.pop(number, None)
        proposal = self._repetition() or self._sampler.ask(number)
        if proposal is not None:
            self._asked[number] = proposal.candidate.digest
        return proposal

    def tell(self, scored: ScoredTrial) -> None:
        """Learn where a trial stands now."""
        self._asked.pop(scored.trial.number, None)
        self._told[scored.trial.number] = scored
        self._sampler.tell(scored)

    def replay(self, history: Sequence[ScoredTrial]) -> None:
        """Learn a stored history."""
        self._told |= {one.trial.number: one for one in history}
        self._sampler.replay(history)

    def _repetition(self) -> Proposal | None:
        if quality_column(self._objectives) is None or not self._within_share():
            return None
        trials = [one for _, one in sorted(self._told.items())]
        open_digests = set(self._asked.values())
        open_digests |= {one.trial.digest for one in trials if one.trial.status is not TrialStatus.COMPLETE}
        worth = self._worth(trials)
        found = [(-gain, number) for number, gain in worth.items() if gain > _LEAST_GAIN]
        found = [one for one in found if self._told[one[1]].trial.digest not in open_digests]
        if not found:
            return None
        trial = self._told[min(found)[1]].trial
        times = sum(one.trial.digest == trial.digest for one in trials)
        seed = int(np.random.SeedSequence([self._seed, times]).generate_state(1)[0])
        return Proposal(parameters=trial.parameters, candidate=trial.candidate, sampler_state={}, seed=seed)

    def _within_share(self) -> bool:
        """Whether one repetition more keeps the share, of trials and of steps, those that run counted as whole."""
        trials = [one.trial for _, one in sorted(self._told.items()) if not one.trial.refused]
        measured = [trial.measurements for trial in trials]
        whole = max((one.planned_steps for one in measured if one is not None), default=0)
        known = {
            trial.number: (trial.digest, trial.measurements.steps if trial.measurements else whole) for trial in trials
        }
        rows = sorted((known | {number: (digest, whole) for number, digest in self._asked.items()}).items())
        seen: Counter[str] = Counter()
        again, steps = 1, whole
        for _, (digest, done) in rows:
            if seen[digest]:
                again, steps = again + 1, steps + done
            seen[digest] += 1
        total = sum(done for _, (_, done) in rows) + whole
        return again <= self._share * (len(rows) + 1) and steps <= self._share * total

    def _worth(self, trials: Sequence[ScoredTrial]) -> dict[int, float]:
        """By the number of its first complete trial, what the front is expected to gain by repeating a candidate."""
        column = quality_column(self._objectives)
        assert column is not None
        points = [one for one in believed(self._objectives, trials).points if one.values is not None]
        if len(points) < LEAST:
            return {}
        observed: dict[str, list[float]] = {}
        for one in trials:
            if one.values is not None:
                observed.setdefault(one.trial.digest, []).append(one.values[column])
        noise = pooled_noise(list(observed.values()))
        if len(points) == sum(map(len, observed.values())):
            # Nothing was repeated yet: half of the differences are taken for noise.
            noise = float(np.var([(one.values or ())[column] for one in points], ddof=1)) / 2
        shrinkage = Shrinkage.of(list(observed.values()), noise)
        array = to_minimise(self._objectives, points)
        low, high = array.min(axis=0), array.max(axis=0)
        span = np.where(high > low, high - low, 1.0)
        scaled, reference = (array - low) / span, np.full(array.shape[1], 1.1)
        found, on_front = {}, pareto.non_dominated(scaled)
        front = scaled[on_front]
        now = pareto.hypervolume(front, reference)
        for index, one in enumerate(points):
            variance = shrinkage.estimate(observed[one.trial.digest]).sd ** 2
            if variance == 0:
                continue
            moved = variance / np.sqrt(variance + shrinkage.noise) / span[column]
            rows = np.tile(scaled[index], (len(_NODES), 1))
            rows[:, column] += moved * _NODES
            if np.any(np.all(front <= rows[0], axis=1)):
                continue  # the best that could be seen would leave it dominated
            others = np.delete(scaled, index, axis=0) if on_front[index] else front
            others = others[pareto.non_dominated(others)]
            without = pareto.hypervolume(others, reference)
            volumes = [
                without
                if np.any(np.all(others <= row, axis=1))
                else pareto.hypervolume(np.vstack([others, row]), reference)
                for row in rows
            ]
            found[one.trial.number] = max(0.0, float(_WEIGHTS @ volumes) - now)
        return found
