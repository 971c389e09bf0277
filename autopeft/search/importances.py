"""How much of an objective's variation each parameter explains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.samplers import RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.domain.objective import Objective
from autopeft.domain.results import ScoredTrial
from autopeft.domain.space import Space
from autopeft.domain.trial import TrialStatus
from autopeft.search.encoding import encode
from autopeft.search.history import History, frozen

LEAST_TRIALS = 8
"""Below this many complete trials nothing can be said."""
_GOOD_TRIALS = 6
"""At least so many trials are the good ones, so that a density can be fitted to them (at most half of all)."""
_SHUFFLES = 12


def importance(
    space: Space, objectives: Sequence[Objective], trials: Sequence[ScoredTrial], seed: int
) -> dict[str, dict[str, float]]:
    """Per objective, the share of each parameter in reaching good values, most important first; shares add up to 1.

    PED-ANOVA (Watanabe et al., IJCAI 2023) in its conditional form: how far the density of a parameter among the good
    trials is from its density among all. Some distance is found by chance, more so with few trials; the mean over
    shuffled values (drawn from `seed`) is taken off. An objective of which nothing is left, or that is constant, is
    not in the answer; with fewer than 8 complete trials none is.
    """
    complete = [one for one in trials if one.values is not None and one.trial.status is TrialStatus.COMPLETE]
    if len(complete) < LEAST_TRIALS:
        return {}
    past = []
    for one in complete:
        params, distributions = encode(space.parameters, one.trial.parameters)
        past.append(frozen(one.trial.number, TrialState.COMPLETE, params, distributions, values=[0.0]))
    study = Study("search", History(past, [StudyDirection.MINIMIZE], len(past)), sampler=RandomSampler(seed=seed))
    share = min(0.5, max(0.1, _GOOD_TRIALS / len(past)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    names = [parameter.name for parameter in space.parameters if any(parameter.name in one.params for one in past)]
    found = {}
    for column, objective in enumerate(objectives):
        losses = np.array([objective.sign * (one.values or ())[column] for one in complete])
        shares = _shares(study, evaluator, names, [trial.number for trial in past], losses, seed)
        if shares:
            found[objective.name] = shares
    return found


def _shares(
    study: Study,
    evaluator: PedAnovaImportanceEvaluator,
    names: list[str],
    numbers: list[int],
    losses: np.ndarray,
    seed: int,
) -> dict[str, float]:
    if not names or losses.min() == losses.max():
        return {}

    def distances(targets: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = evaluator.evaluate(study, names, target=_target(numbers, targets))
        return np.array([measured.get(name, 0.0) for name in names])

    rng = np.random.default_rng(seed)
    by_chance = np.mean([distances(rng.permutation(losses)) for _ in range(_SHUFFLES)], axis=0)
    left = np.maximum(0.0, distances(losses) - by_chance)
    total = float(left.sum())
    if not math.isfinite(total) or total <= 0:
        return {}
    order = np.argsort(-left, kind="stable")
    return {names[index]: float(left[index] / total) for index in order}


def _target(numbers: list[int], losses: np.ndarray) -> Callable[[FrozenTrial], float]:
    by_number = dict(zip(numbers, losses.tolist(), strict=True))
    return lambda trial: float(by_number[trial.number])
