"""What earlier runs let a model expect: a mean that fades as far as own results do not bear it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from autopeft.domain.objective import Objective
from autopeft.domain.space import Parameter
from autopeft.domain.start import EarlierRun
from autopeft.search.encoding import encode
from autopeft.search.front.axes import Axes
from autopeft.search.front.surrogate import Posterior, Prior, fit
from autopeft.search.front.views import View

Array = NDArray[np.float64]
Mean = Callable[[Array], Array]
"""`[N, d]` -> `[N]`: expected losses."""

_DRAWS = 256
"""Draws of rankings."""
_KEPT = 300
"""Trials of an earlier run that are learned from, at most."""
_LEAST = 3
"""Own trials without which nothing says how far earlier ones are to be trusted."""
_DILUTED = 0.95


class Belief(Protocol):
    """What is known of one objective."""

    @property
    def noise(self) -> float: ...

    @property
    def spread(self) -> float: ...

    def predict(self, inputs: Array) -> tuple[Array, Array]: ...

    def joint(self, inputs: Array) -> tuple[Array, Array]: ...

    def given(self, inputs: Array, values: Array) -> Belief: ...


@dataclass(frozen=True, eq=False)
class Shifted:
    """A Gaussian process with a mean that is not constant: a posterior of what the mean leaves."""

    rest: Posterior
    mean: Mean

    @property
    def noise(self) -> float:
        return self.rest.noise

    @property
    def spread(self) -> float:
        return self.rest.spread

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        """As `Posterior.predict`."""
        mean, sd = self.rest.predict(inputs)
        return mean + self.mean(inputs), sd

    def joint(self, inputs: Array) -> tuple[Array, Array]:
        """As `Posterior.joint`."""
        mean, covariance = self.rest.joint(inputs)
        return mean + self.mean(inputs), covariance

    def given(self, inputs: Array, values: Array) -> Shifted:
        """As `Posterior.given`."""
        return Shifted(self.rest.given(inputs, values - self.mean(inputs)), self.mean)


class EarlierRuns:
    """Earlier runs, each as a Gaussian process of its own over this search's inputs.

    The mean that a search expects of an objective is

        m(x) = Σ_r w_r (a_r + b_r g_r(x)) + (1 - Σ_r w_r) ȳ,

    g_r the posterior mean of run r. a_r and b_r >= 0 carry its scale over to this task's: the median of the slopes
    between own trials (Theil 1950, Sen 1968) and the median of what it leaves. w_r are the weights of RGPE (Feurer et
    al. 2018, arXiv:1802.02219, section 4.1): of many draws from the posteriors, the share in which run r misranks
    fewer pairs of own trials than any other run and than the search's own model, whose predictions of a trial are those
    without it (leave-one-out). A run whose median loss lies above the 95th percentile of the own model's has no weight
    (its section 4.3). Where RGPE mixes posteriors, here the search's own process learns what the mean leaves: what is
    wrong with it is corrected where trials were made, and with all weights at 0 the model is that of a cold start.
    """

    def __init__(
        self, view: View, parameters: Sequence[Parameter], objectives: Sequence[Objective], runs: Sequence[EarlierRun]
    ) -> None:
        """`parameters`: of the space, of which the trials of the runs are points."""
        self._view = view
        self._parameters = tuple(parameters)
        self._objectives = tuple(objectives)
        self._runs = tuple(runs)
        self._known: dict[tuple[int, int], Posterior | None] = {}

    def expected(
        self,
        index: int,
        axes: Axes,
        rows: Array,
        losses: Array,
        groups: NDArray[np.int_],
        prior: Prior,
        own: Posterior | None = None,
    ) -> Mean | None:
        """What earlier runs let one expect of an objective, after own trials; None where that is nothing.

        Args:
            index: Of the objective.
            axes: What losses of objectives are.
            rows: `[trials, d]`, own complete trials.
            losses: `[trials]`.
            groups: `[d]`, of the inputs.
            prior: Of the objective's process.
            own: The process of these trials alone, where it is known already.
        """
        if len(rows) < _LEAST or float(np.ptp(losses)) == 0:
            return None
        learned = [self._process(run, index, axes, groups, prior) for run in range(len(self._runs))]
        found = [one for one in learned if one is not None]
        if not found:
            return None
        weights = ranking_weights(found, own or fit(rows, losses, groups, prior), rows, losses)
        parts = []
        for process, weight in zip(found, weights, strict=True):
            offset, slope = _line(process.predict(rows)[0], losses)
            if weight > 0 and slope > 0:
                parts.append((float(weight), offset, slope, process))
        if not parts:
            return None
        rest = (1.0 - sum(weight for weight, *_ in parts)) * float(losses.mean())

        def mean(inputs: Array) -> Array:
            total = np.full(len(inputs), rest)
            for weight, offset, slope, process in parts:
                total += weight * (offset + slope * process.predict(inputs)[0])
            return total

        return mean

    def _process(self, run: int, index: int, axes: Axes, groups: NDArray[np.int_], prior: Prior) -> Posterior | None:
        key = run, index
        if key not in self._known:
            self._known[key] = self._learn(self._runs[run], index, axes, groups, prior)
        return self._known[key]

    def _learn(
        self, run: EarlierRun, index: int, axes: Axes, groups: NDArray[np.int_], prior: Prior
    ) -> Posterior | None:
        objective = self._objectives[index]
        rows, values = [], []
        for trial in run.trials:
            name = run.quality if objective.is_quality else objective.name
            point = self._view.point(encode(self._parameters, trial.parameters)[0])
            if point is not None and name in trial.values:
                rows.append(point.row)
                values.append(trial.values[name])
        if len(values) < _LEAST:
            return None
        some = np.linspace(0, len(values) - 1, min(_KEPT, len(values))).astype(int)
        if objective.is_quality:
            losses = np.array(values) * (-1.0 if run.maximised else 1.0)
        else:
            losses = axes.losses(index, values)
        if float(np.ptp(losses[some])) == 0:
            return None
        return fit(np.array(rows)[some], losses[some], groups, prior)


def ranking_weights(earlier: Sequence[Posterior], own: Posterior, rows: Array, losses: Array) -> Array:
    """Weights of earlier processes by how well they rank own trials, `[earlier]`; what is left of 1 is the own model's.

    Args:
        earlier: Processes over the same inputs.
        own: The search's own process, given `losses` at `rows`.
        rows: `[trials, d]`.
        losses: `[trials]`.
    """
    n = len(losses)
    normal = np.random.default_rng(0).standard_normal((_DRAWS, n))
    below = losses[:, None] < losses[None, :]  # [j, k]
    mean, sd = left_out(own, losses)
    alone = (mean + sd * normal)[:, :, None] < losses[None, None, :]
    different = ~np.eye(n, dtype=bool)
    own_loss = np.sum((alone != below) & different, axis=(1, 2))
    found = []
    for process in earlier:
        expected, covariance = process.joint(rows)
        drawn = expected + normal @ np.linalg.cholesky(covariance + 1e-9 * np.trace(covariance) * np.eye(n)).T
        found.append(np.sum(((drawn[:, :, None] < drawn[:, None, :]) != below) & different, axis=(1, 2)))
    table = np.array(found)
    table[np.median(table, axis=1) > np.quantile(own_loss, _DILUTED)] = n * n
    best = table.min(axis=0)
    # Of equally good runs the first has it; the own model has it where no run is better.
    chosen = np.where(best < own_loss, table.argmin(axis=0), -1)
    return np.array([np.mean(chosen == index) for index in range(len(earlier))])


def left_out(own: Posterior, losses: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each trial's noiseless value, given all others (Rasmussen and Williams 2006,
    eq. 5.12), `[trials]` each."""
    half = solve_triangular(own.lower, np.eye(len(losses)), lower=True)
    precision = np.sum(half**2, axis=0)
    mean = losses - own.spread * own.weights / precision
    return mean, own.spread * np.sqrt(np.maximum(1.0 / precision - own.noise, 1e-12))


def _line(inputs: Array, losses: Array) -> tuple[float, float]:
    """Offset and slope of the line by Theil and Sen; a slope below 0 is none."""
    first, second = np.triu_indices(len(inputs), k=1)
    apart = inputs[second] - inputs[first]
    clear = np.abs(apart) > 1e-12
    slope = float(np.median((losses[second] - losses[first])[clear] / apart[clear])) if clear.any() else 0.0
    slope = max(0.0, slope)
    return float(np.median(losses - slope * inputs)), slope
