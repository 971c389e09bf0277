"""From trials to beliefs about candidates, and from beliefs to the worth of trying each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

from autopeft.search.front.acquisition import boxes, expected_hypervolume_improvement
from autopeft.search.front.axes import COST, QUALITY, Axes
from autopeft.search.front.earlier import Belief, EarlierRuns, Shifted
from autopeft.search.front.fits import Fits
from autopeft.search.front.views import Point

Array = NDArray[np.float64]

_MARGIN = 0.1
"""The reference lies this share of the range behind the worst."""
_FANTASIES = 8


@dataclass(frozen=True)
class Unfinished:
    """Trials that were stopped early, with what they were heading for; each has to be learned like the others."""

    trials: Sequence[Point]
    values: Array
    """`[trials, objectives]`"""
    variances: Array
    """`[trials, objectives]`: of the values."""


class Beliefs:
    """What is believed after the trials told so far.

    The front that is held is made of posterior means of the first objective, since observations of it are noisy: a
    lucky trial does not stand in the way of better ones. Trials that were stopped early are observations with a noise
    of their own beside the learned one, and hold nothing; not on logarithmic scales, since memory waits for no end.
    """

    def __init__(
        self,
        axes: Axes,
        trials: Sequence[Point],
        values: Array,
        learned: Sequence[int],
        groups: NDArray[np.int_],
        unfinished: Unfinished | None = None,
        fits: Fits | None = None,
        earlier: EarlierRuns | None = None,
    ) -> None:
        """`values [trials, objectives]` as told, at least one trial; `learned`: the objectives that are not known."""
        rows = np.array([point.row for point in trials])
        self._axes = axes
        self._posteriors: list[Belief | None] = []
        fits = fits or Fits()
        held = []
        for column, index in enumerate(axes.order):
            losses = axes.losses(index, values[:, index])
            posterior: Belief | None = None
            if index in learned:
                prior = COST if column and axes.logarithmic[index] else QUALITY
                said = _Said(rows, losses)
                if unfinished is not None and not axes.logarithmic[index]:
                    said = _with_unfinished(rows, losses, unfinished, axes, index)
                posterior = fits.posterior(said.rows, said.losses, groups, prior, said.variances, exact=len(losses))
                own = posterior if said.variances is None else None
                expected = None
                if earlier is not None:
                    expected = earlier.expected(index, axes, rows, losses, groups, prior, own)
                if expected is not None:
                    rest = said.losses - expected(said.rows)
                    found = fits.posterior(said.rows, rest, groups, prior, said.variances, exact=len(losses))
                    posterior = Shifted(found, expected)
            self._posteriors.append(posterior)
            held.append(posterior.predict(rows)[0] if posterior is not None and column == 0 else losses)
        self.held = np.stack(held, axis=1)
        """`[trials, m]`, in the order of the axes."""

    @property
    def posteriors(self) -> Sequence[Belief | None]:
        """In the order of the axes; None where an objective is known of every point."""
        return tuple(self._posteriors)

    @property
    def noise(self) -> float:
        """Standard deviation of one observation of the first objective."""
        first = self._posteriors[0]
        return 0.0 if first is None else first.spread * float(np.sqrt(first.noise))

    def of(self, points: Sequence[Point]) -> tuple[Array, Array]:
        """Means and standard deviations of losses, `[points, m]` each, in the order of the axes."""
        return self._of(points, self._posteriors)

    def _of(self, points: Sequence[Point], posteriors: Sequence[Belief | None]) -> tuple[Array, Array]:
        rows = np.array([point.row for point in points])
        mean, sd = np.zeros((2, len(points), len(self._axes.order)))
        for column, (index, posterior) in enumerate(zip(self._axes.order, posteriors, strict=True)):
            if posterior is not None:
                mean[:, column], sd[:, column] = posterior.predict(rows)
            exact = [(row, value) for row, point in enumerate(points) if (value := point.known[index]) is not None]
            if exact:
                where = [row for row, _ in exact]
                mean[where, column] = self._axes.losses(index, [value for _, value in exact])
                sd[where, column] = 0.0
        return mean, sd

    def worth(self, points: Sequence[Point], running: Sequence[Point], reference: Array) -> Array:
        """Expected hypervolume improvement of every point, `[points]`, beside trials that run already.

        What running trials will turn out to be is drawn from the belief a few times (the same quasi-random draws for
        every point); each draw is believed, and the improvements beyond it are averaged.
        """
        if not running:
            mean, sd = self.of(points)
            return expected_hypervolume_improvement(mean, sd, boxes(self.held, reference))
        total = np.zeros(len(points))
        first = self._posteriors[0]
        rows = np.array([point.row for point in running])
        costs = self.of(running)[0]
        for normal in _normals(len(running)):
            posteriors, losses = list(self._posteriors), costs.copy()
            if first is not None:
                mean, covariance = first.joint(rows)
                losses[:, 0] = mean + _root(covariance) @ normal
                posteriors[0] = first.given(rows, losses[:, 0])
            means, sds = self._of(points, posteriors)
            held = boxes(np.vstack([self.held, losses]), reference)
            total += expected_hypervolume_improvement(means, sds, held)
        return total / _FANTASIES

    def reference(self, points: Sequence[Point]) -> Array:
        """`[m]`: a little behind the worst of the first objective that is held and of what others can be."""
        others = self.of(points)[0]
        everything = np.vstack([others, self.held])
        worst, best = everything.max(axis=0), everything.min(axis=0)
        worst[0], best[0] = self.held[:, 0].max(), self.held[:, 0].min()
        span = worst - best
        return worst + _MARGIN * np.where(span > 0, span, 1.0)


@dataclass(frozen=True, eq=False)
class _Said:
    """What trials told of one objective."""

    rows: Array
    losses: Array
    variances: Array | None = None


def _with_unfinished(rows: Array, losses: Array, unfinished: Unfinished, axes: Axes, index: int) -> _Said:
    return _Said(
        np.vstack([rows, [point.row for point in unfinished.trials]]),
        np.concatenate([losses, axes.losses(index, unfinished.values[:, index])]),
        np.concatenate([np.zeros(len(losses)), unfinished.variances[:, index]]),
    )


def _normals(width: int) -> Array:
    """`[fantasies, width]`: standard normal draws, spread evenly, always the same."""
    uniform = qmc.Sobol(min(width, 2000), seed=0).random(_FANTASIES)
    normal = ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))
    return np.resize(normal, (_FANTASIES, width)) if width > 2000 else normal


def _root(covariance: Array) -> Array:
    """A matrix whose square is the covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))
