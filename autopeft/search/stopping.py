"""Early stopping by what is still to be gained: a training goes on where another one would gain less per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.stopping import Halving, Standing, StoppingRule
from autopeft.search.front.acquisition import boxes, expected_hypervolume_improvement
from autopeft.search.front.axes import QUALITY
from autopeft.search.front.fits import Fits, share
from autopeft.search.front.views import SpaceView

Array = NDArray[np.float64]

_MARGIN = 0.1
"""The reference lies this share of the range behind the worst."""
_SPAN = 4.0
"""Standard deviations of a rung's losses that count as the range of an input."""


@dataclass(frozen=True, eq=False)
class GainStopping:
    """A trial goes on while its expected gain per step is within reach of what a new trial promises.

    At a rung, the final loss of each trial that reached it is predicted from its validation and its training loss there
    and from its candidate, by a Gaussian process over the complete trials (`front.surrogate`): a rung alone says little
    of a trial whose kind is slow to begin and good in the end. Its expected gain is the expected hypervolume
    improvement of that prediction, at the trial's own memory, over the front of the predictions of the complete trials
    (`front.acquisition`, equation 1): what matters is how far the best trials that need no more memory are ahead. To go
    on costs the share 1 - s of the steps that is left; to have a new trial at this rung costs s. If of the n trials at
    this rung those with the k largest gains g had gone on, a new trial would have gained per cost

        rate(k) = (g_1 + ... + g_k) / (n s + k (1 - s)),      rate = max_k rate(k),                            (1)

    by the renewal-reward theorem, and the best threshold is the one where going on gains at this rate (for one reward
    it is the reservation value of Weitzman 1979). So a trial goes on where

        g ≥ patience · rate · (1 - s).                                                                         (2)

    Where a rung says nothing, all trials of one memory and kind have the same gain, and all go on. The only one of its
    memory band has a level nobody holds before it, and goes on. With `patience` 1 (2) is the best rule if predictions
    are right and there is no end to new trials; less is more careful. Before `least` trials are complete, all go on.
    """

    promotes: ClassVar[bool] = False
    shares: tuple[float, ...]
    """The rungs, as shares of the planned steps."""
    patience: float = 0.1
    least: int = 6
    view: SpaceView | None = None
    """How candidates are described; without it, and for trials without parameters, rungs alone predict."""
    _fits: Fits = field(default_factory=Fits, repr=False)

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        """See `StoppingRule.goes_on`."""
        rung = len(trial.losses) - 1
        done = self.shares[rung]
        everyone = sorted((*others, trial), key=lambda one: one.number)
        gains = self.gains(everyone, rung)
        if gains is None or done >= 1.0:
            return True
        return gains[trial.number] >= self.patience * rate(list(gains.values()), done) * (1.0 - done)

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        """See `StoppingRule.behind`: what the gain lacks to (2), with everything that is known now."""
        found, everyone = {}, sorted(standings, key=lambda one: one.number)
        for rung in {len(one.losses) - 1 for one in everyone if one.stopped}:
            gains, done = self.gains(everyone, rung), self.shares[rung]
            if gains is None:
                continue
            least = self.patience * rate(list(gains.values()), done) * (1.0 - done)
            for one in everyone:
                if one.stopped and len(one.losses) - 1 == rung:
                    found[one.number] = least - gains[one.number]
        return found

    def gains(self, trials: Sequence[Standing], rung: int) -> dict[int, float] | None:
        """Expected gain of each trial that reached a rung, by number; None where too few are complete."""
        reached = [one for one in trials if len(one.losses) > rung]
        complete = [one for one in reached if one.complete]
        if len(complete) < self.least:
            return None
        mean, sd = self.predicted_ends(reached, complete, rung)
        ends = dict(zip((one.number for one in reached), mean, strict=True))
        # Who skipped this rung, as one that was trained on from behind it, holds what it was seen to hold.
        held = np.array(
            [(ends.get(one.number, one.losses[-1]), math.log(one.memory)) for one in trials if one.complete]
        )
        memory = np.array([math.log(one.memory) for one in reached])
        worst = np.array([held[:, 0].max(), max(memory.max(), held[:, 1].max())])
        best = np.array([held[:, 0].min(), min(memory.min(), held[:, 1].min())])
        reference = worst + _MARGIN * np.where(worst > best, worst - best, 1.0)
        expected = expected_hypervolume_improvement(
            np.stack([mean, memory], axis=1), np.stack([sd, np.zeros(len(sd))], axis=1), boxes(held, reference)
        )
        return {one.number: float(gain) for one, gain in zip(reached, expected, strict=True)}

    def predicted_ends(
        self, trials: Sequence[Standing], complete: Sequence[Standing], rung: int
    ) -> tuple[Array, Array]:
        """Mean and standard deviation of the noiseless final losses of `trials` seen at a rung, `[trials]` each.

        What is regressed on is what trials are stopped by, so that only having the complete ones leaves the mean
        unbiased.
        """
        everyone = (*trials, *complete)
        train = all(len(one.train_losses) > rung for one in everyone)
        seen = np.array([(one.losses[rung], *one.train_losses[rung : rung + 1][:train]) for one in everyone])
        first = seen[len(trials) :][: share(len(complete))]  # those that hyper-parameters are fitted to, see `Fits`
        spread = first.std(axis=0)
        inputs = (seen - first.mean(axis=0)) / (_SPAN * np.where(spread > 0, spread, 1.0))
        rows, groups = self._described(everyone)
        count = int(groups.max()) + 1 if len(groups) else 0
        inputs, groups = np.hstack([inputs, rows]), np.concatenate([count + np.arange(inputs.shape[1]), groups])
        ends = np.array([one.losses[-1] for one in complete])
        posterior = self._fits.posterior(inputs[len(trials) :], ends, groups, QUALITY)
        return posterior.predict(inputs[: len(trials)])

    def _described(self, trials: Sequence[Standing]) -> tuple[Array, NDArray[np.int_]]:
        """The candidates as inputs, `[trials, d]`, and their groups; no inputs where one cannot be described."""
        points = [self.view.described(one.parameters) if self.view and one.parameters else None for one in trials]
        rows = [point.row for point in points if point is not None]
        if self.view is None or len(rows) < len(trials):
            return np.zeros((len(trials), 0)), np.zeros(0, dtype=int)
        return np.array(rows), self.view.groups


def rule_of(name: str, shares: Sequence[float], view: SpaceView | None = None) -> StoppingRule:
    """The rule of a name in `autopeft.domain.stopping.RULES`, for rungs at these shares of the planned steps.

    `view` is the search space as surrogates see it.
    """
    return GainStopping(tuple(shares), view=view) if name == "front" else Halving()


def rate(gains: Sequence[float], done: float) -> float:
    """Equation (1) of `GainStopping`."""
    descending = np.sort(np.asarray(gains, dtype=float))[::-1]
    going = np.arange(1, len(descending) + 1)
    return float(np.max(np.cumsum(descending) / (len(descending) * done + going * (1.0 - done))))
