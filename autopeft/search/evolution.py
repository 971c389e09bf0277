"""Regularised evolution: the best of a few is changed a little, and the oldest dies."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.domain.pareto import layers
from autopeft.search.front.views import View

POPULATION = 20
"""The paper keeps 100; that many random trials are more than most fine-tuning searches have."""
_SHARE = 0.25
"""Share of the population that competes to be the parent: 25 of 100 in the paper."""


class EvolutionSampler(BaseSampler):
    """Regularised (aging) evolution: Real et al., AAAI 2019 (arXiv:1802.01548), algorithm 1.

    The first `population` trials are random. Then the population is the youngest `population` complete trials, of which
    a quarter is drawn without replacement; the best of these is the parent, and its child differs in one mutation. So
    the oldest dies however good it was. With several objectives, the best are those that no other of the drawn
    dominates, and one of them is taken at random: the paper has one objective.

    Trials that run are not in the population, as in the paper's asynchronous workers.
    """

    def __init__(self, view: View, seed: int, population: int | None = None) -> None:
        """`population`: trials kept, and random trials at first."""
        self._view = view
        self._seed = seed
        self._population = max(2, population or POPULATION)
        self._otherwise = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._view.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        alive = self._alive(study)
        if len(alive) < self._population:
            return {}
        rng = np.random.default_rng([self._seed, trial.number])
        drawn = rng.choice(len(alive), size=max(2, round(_SHARE * self._population)), replace=False)
        signs = [1.0 if one is StudyDirection.MINIMIZE else -1.0 for one in study.directions]
        best = np.flatnonzero(layers(np.array([alive[index].values for index in drawn]) * signs) == 0)
        parent = self._view.point(alive[drawn[int(rng.choice(best))]].params)
        child = None if parent is None else self._view.changed(parent, rng, 1)
        return {} if child is None else dict(child.params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._otherwise.sample_independent(study, trial, param_name, param_distribution)

    def _alive(self, study: Study) -> list[FrozenTrial]:
        complete = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if all(violation <= 0 for violation in trial.constraints.values())
        ]
        return complete[-self._population :]
