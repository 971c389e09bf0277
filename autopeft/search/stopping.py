"""Early stopping by what is still to be gained: a training goes on where another one would gain less per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.stopping import Halving, Standing, StoppingRule
from autopeft.search.front.acquisition import boxes, expected_hypervolume_improvement

Array = NDArray[np.float64]

_MARGIN = 0.1
"""The reference lies this share of the range behind the worst."""
_RIDGE = 1.0
"""Weight of the belief that a rung says nothing, in observations of standardised inputs."""


@dataclass(frozen=True)
class GainStopping:
    """A trial goes on while its expected gain per step is within reach of what a new trial promises.

    At a rung, the final loss of each trial that reached it is predicted from its validation and its training loss there
    by a ridge regression over the complete trials. Its expected gain is the expected hypervolume improvement of that
    prediction, at the trial's own memory, over the front of the complete trials (`front.acquisition`, equation 1): what
    matters is how far the best trials that need no more memory are ahead. To go on costs the share 1 - s of the steps
    that is left; to have a new trial at this rung costs s. If of the n trials at this rung those with the k largest
    gains g had gone on, a new trial would have gained per cost

        rate(k) = (g_1 + ... + g_k) / (n s + k (1 - s)),      rate = max_k rate(k),                            (1)

    by the renewal-reward theorem, and the best threshold is the one where going on gains at this rate (for one reward
    it is the reservation value of Weitzman 1979). So a trial goes on where

        g ≥ patience · rate · (1 - s).                                                                         (2)

    Where a rung says nothing, all trials of one memory have the same gain, and all go on. The only one of its memory
    band has a level nobody holds before it, and goes on. With `patience` 1 (2) is the best rule if predictions are
    right and there is no end to new trials; less is more careful. Before `least` trials are complete, all go on.
    """

    promotes: ClassVar[bool] = False
    shares: tuple[float, ...]
    """The rungs, as shares of the planned steps."""
    patience: float = 0.1
    least: int = 6

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        """See `StoppingRule.goes_on`."""
        rung = len(trial.losses) - 1
        share = self.shares[rung]
        everyone = sorted((*others, trial), key=lambda one: one.number)
        gains = self.gains(everyone, rung)
        if gains is None or share >= 1.0:
            return True
        return gains[trial.number] >= self.patience * rate(list(gains.values()), share) * (1.0 - share)

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        """See `StoppingRule.behind`: what the gain lacks to (2), with everything that is known now."""
        found, everyone = {}, sorted(standings, key=lambda one: one.number)
        for rung in {len(one.losses) - 1 for one in everyone if one.stopped}:
            gains, share = self.gains(everyone, rung), self.shares[rung]
            if gains is None:
                continue
            least = self.patience * rate(list(gains.values()), share) * (1.0 - share)
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
        mean, sd = predicted_ends(reached, complete, rung)
        held = np.array([(one.losses[-1], math.log(one.memory)) for one in trials if one.complete])
        memory = np.array([math.log(one.memory) for one in reached])
        worst = np.array([held[:, 0].max(), max(memory.max(), held[:, 1].max())])
        best = np.array([held[:, 0].min(), min(memory.min(), held[:, 1].min())])
        reference = worst + _MARGIN * np.where(worst > best, worst - best, 1.0)
        expected = expected_hypervolume_improvement(
            np.stack([mean, memory], axis=1), np.stack([sd, np.zeros(len(sd))], axis=1), boxes(held, reference)
        )
        return {one.number: float(gain) for one, gain in zip(reached, expected, strict=True)}


def rule_of(name: str, shares: Sequence[float]) -> StoppingRule:
    """The rule of a name in `autopeft.domain.stopping.RULES`, for rungs at these shares of the planned steps."""
    return GainStopping(tuple(shares)) if name == "front" else Halving()


def rate(gains: Sequence[float], share: float) -> float:
    """Equation (1) of `GainStopping`."""
    descending = np.sort(np.asarray(gains, dtype=float))[::-1]
    going = np.arange(1, len(descending) + 1)
    return float(np.max(np.cumsum(descending) / (len(descending) * share + going * (1.0 - share))))


def predicted_ends(trials: Sequence[Standing], complete: Sequence[Standing], rung: int) -> tuple[Array, Array]:
    """Mean and standard deviation of the final losses of `trials` seen at a rung, `[trials]` each.

    A line in the losses at the rung, with a ridge; the standard deviation has the residuals' and the coefficients'
    uncertainty. Complete trials are chosen by what is regressed on, which leaves the line unbiased.
    """
    train = all(len(one.train_losses) > rung for one in (*trials, *complete))

    def row(one: Standing) -> tuple[float, ...]:
        return (one.losses[rung], one.train_losses[rung]) if train else (one.losses[rung],)

    seen, ends = np.array([row(one) for one in complete]), np.array([one.losses[-1] for one in complete])
    shift, spread = seen.mean(axis=0), seen.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    inputs, middle = (seen - shift) / spread, ends.mean()
    inverse = np.linalg.inv(inputs.T @ inputs + _RIDGE * np.eye(inputs.shape[1]))
    slopes = inverse @ inputs.T @ (ends - middle)
    rest = ends - middle - inputs @ slopes
    variance = float(rest @ rest) / max(1, len(ends) - 1 - inputs.shape[1])
    asked = (np.array([row(one) for one in trials]) - shift) / spread
    doubt = 1.0 + 1.0 / len(ends) + np.einsum("nd,de,ne->n", asked, inverse, asked)
    return middle + asked @ slopes, np.sqrt(variance * doubt)
