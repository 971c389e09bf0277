"""Quality is noisy: what several trainings of one candidate, with different seeds, say of it together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autopeft.domain.objective import Objective
from autopeft.domain.results import ScoredTrial, quality_column

LEAST = 3
"""Repetitions, over all candidates, from which on the noise is believed and means are shrunk."""


_GRID = 600
"""Values that `between` may take: 2 % apart."""


@dataclass(frozen=True)
class Estimate:
    """What is known of one candidate's quality."""

    count: int
    """Trainings, each with its own seed."""
    mean: float
    """Of what they observed."""
    spread: float | None
    """Sample standard deviation of what they observed; None of one."""
    posterior: float
    """Posterior mean."""
    sd: float
    """Posterior standard deviation."""


@dataclass(frozen=True)
class Shrinkage:
    """The normal-normal model: quality of candidate c is N(centre, between), each training of it N(quality, noise).

    Empirical Bayes (Efron and Morris 1973): with n_c trainings of mean m_c,

        noise   = sum_c sum_j (y_cj - m_c)^2 / sum_c (n_c - 1), pooled over the candidates with repetitions
        centre  = sum_c m_c / (between + noise / n_c) / sum_c 1 / (between + noise / n_c)
        between = argmax of t in log(t) / 2 - sum_c [log(t + noise / n_c) + (m_c - centre)^2 / (t + noise / n_c)] / 2
        posterior mean     = (centre / between + n_c m_c / noise) / (1 / between + n_c / noise)
        posterior variance = 1 / (1 / between + n_c / noise)

    The first term of `between`'s is the penalty of Chung et al. 2013 (Psychometrika 78): the plain likelihood is often
    largest at 0 where candidates are few and noise is large, and all would then be believed to be equal.
    """

    centre: float
    between: float
    noise: float

    @classmethod
    def of(cls, observed: Sequence[Sequence[float]], noise: float | None = None) -> Shrinkage:
        """Estimated from the observations of all candidates; `noise` takes the place of the pooled one."""
        counts = np.array([len(one) for one in observed])
        means = np.array([math.fsum(one) / len(one) for one in observed])
        if noise is None:
            noise = pooled_noise(observed)
        spread = float(means.var(ddof=1)) if len(means) > 1 else 0.0
        if noise <= 0 or spread <= 0:
            return cls(float(means.mean()), spread, noise)
        tried = np.geomspace(1e-4, 1e2, _GRID) * max(spread, noise)
        variances = tried[:, None] + noise / counts
        centres = (means / variances).sum(axis=1) / (1 / variances).sum(axis=1)
        likelihood = -(np.log(variances) + (means - centres[:, None]) ** 2 / variances).sum(axis=1) / 2
        best = int(np.argmax(np.log(tried) / 2 + likelihood))
        return cls(float(centres[best]), float(tried[best]), noise)

    def estimate(self, observed: Sequence[float]) -> Estimate:
        """Of a candidate with these observations."""
        count, mean = len(observed), math.fsum(observed) / len(observed)
        error = self.noise / count
        weight = self.between / (self.between + error) if self.between + error > 0 else 1.0
        return Estimate(
            count=count,
            mean=mean,
            spread=float(np.std(observed, ddof=1)) if count > 1 else None,
            posterior=weight * mean + (1 - weight) * self.centre,
            sd=math.sqrt(weight * error),
        )


def pooled_noise(observed: Sequence[Sequence[float]]) -> float:
    """Variance of one training around its candidate's quality; 0 where nothing was repeated."""
    free = sum(len(one) - 1 for one in observed)
    return sum(float(np.var(one)) * len(one) for one in observed) / free if free else 0.0


@dataclass(frozen=True)
class Beliefs:
    """The candidates of a search, each once, by what all its trainings say."""

    points: tuple[ScoredTrial, ...]
    """As the trials were; where anything was repeated, one per candidate: its first complete trial, with the posterior
    mean of its quality and the mean of every other objective. Trials without values stay as they are."""
    estimates: Mapping[int, Estimate] = field(default_factory=dict)
    """Of the quality, by the number of that trial; empty where nothing was repeated."""
    first: Mapping[int, int] = field(default_factory=dict)
    """By the number of a repetition, the trial that it repeats."""


def believed(objectives: Sequence[Objective], trials: Sequence[ScoredTrial]) -> Beliefs:
    """What trials, in order of number, say of their candidates; without repetitions, what each said.

    Below `LEAST` repetitions the noise is too uncertain to shrink by: the posterior mean is then the mean.
    """
    groups: dict[str, list[ScoredTrial]] = {}
    for one in trials:
        if one.values is not None:
            groups.setdefault(one.trial.digest, []).append(one)
    column = quality_column(objectives)
    repetitions = sum(len(group) - 1 for group in groups.values())
    if column is None or not repetitions:
        return Beliefs(tuple(trials))
    observed = {digest: [(one.values or ())[column] for one in group] for digest, group in groups.items()}
    shrinkage = Shrinkage.of(list(observed.values()))
    estimates, points = {}, [one for one in trials if one.values is None]
    for digest, group in groups.items():
        estimate = shrinkage.estimate(observed[digest])
        if repetitions < LEAST:
            error = math.sqrt(shrinkage.noise / estimate.count)
            estimate = replace(estimate, posterior=estimate.mean, sd=error)
        means = np.mean([list(one.values or ()) for one in group], axis=0).tolist()
        means[column] = estimate.posterior
        points.append(ScoredTrial(group[0].trial, tuple(means)))
        estimates[group[0].trial.number] = estimate
    return Beliefs(
        points=tuple(sorted(points, key=lambda one: one.trial.number)),
        estimates=estimates,
        first={one.trial.number: group[0].trial.number for group in groups.values() for one in group[1:]},
    )
