"""Which proposals are likely to run out of memory, learned from the trials that did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.space import ChoiceDomain, IntDomain, Parameter
from autopeft.search.encoding import Encoded

_RIDGE = 0.05
"""Strength of the pull towards no effect; weak, since a memory limit is a sharp edge."""
_STEPS = 25

Array = NDArray[np.float64]


class Feasibility:
    """Logistic regression of "infeasible" on the parameters and on their logarithms.

    Memory is close to a product (layers x width of the modules x rank x batch), so its limit is close to a plane in
    the logarithms. Optuna's Parzen estimators alone see each parameter for itself, or a few trials at a time, and
    keep trying the far side of such an edge.
    """

    def __init__(
        self, parameters: Sequence[Parameter], trials: Sequence[Mapping[str, Encoded]], infeasible: Sequence[bool]
    ) -> None:
        """`trials` are encoded parameters; at least one is infeasible."""
        self._parameters = parameters
        features = np.array([self._features(trial) for trial in trials])
        self._weights = fit_edge(features, np.array(infeasible, dtype=float))

    def risk(self, trial: Mapping[str, Encoded]) -> float:
        """Probability that a trial of these parameters is infeasible."""
        return float(sigmoid(self._features(trial) @ self._weights))

    def _features(self, trial: Mapping[str, Encoded]) -> Array:
        """`[features]`: 1, then per parameter its scaled value, its logarithm or an indicator per choice; 0s where it
        does not exist."""
        features = [1.0]
        for parameter in self._parameters:
            value, domain = trial.get(parameter.name), parameter.domain
            if isinstance(domain, ChoiceDomain):
                if domain.ordered:
                    features.append(_scaled(value, 0, len(domain.values) - 1))
                else:
                    features += [float(value == index) for index in range(len(domain.values))]
                continue
            if not domain.log:
                features.append(_scaled(value, domain.low, domain.high))
            if domain.low > 0 and (domain.log or isinstance(domain, IntDomain)):
                logarithm = None if value is None else math.log(value)
                features.append(_scaled(logarithm, math.log(domain.low), math.log(domain.high)))
        return np.array(features)


def _scaled(value: float | None, low: float, high: float) -> float:
    """From -1 to 1; 0 where there is no value or nothing to choose."""
    return 0.0 if value is None or high <= low else 2.0 * (value - low) / (high - low) - 1.0


def fit_edge(features: Array, targets: Array) -> Array:
    """Weights of a ridge logistic regression by Newton's method; `features [n, d]`, `targets [n]` -> `[d]`."""
    width = features.shape[1]
    penalty = np.full(width, _RIDGE)
    penalty[0] = 1e-3  # the base rate is free, up to a little for a matrix that can be inverted
    weights = np.zeros(width)
    for _ in range(_STEPS):
        chance = sigmoid(features @ weights)
        gradient = features.T @ (chance - targets) + penalty * weights
        curvature = (features * (chance * (1 - chance))[:, None]).T @ features + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        longest = float(np.abs(step).max())
        weights = weights - step * min(1.0, 4.0 / longest if longest > 0 else 1.0)
        if longest < 1e-6:
            break
    return weights


def sigmoid(logits: Array) -> Array:
    """Probabilities of logits."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -35.0, 35.0))))
