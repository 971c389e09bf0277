"""What replaying searches on a recorded table gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MARKS = (0.90, 0.95, 0.99)
"""Shares of the reference hypervolume of which the time is told."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class Moment:
    """The state of a replayed search just after a trial ended."""

    seconds: float
    """Of the simulated clock."""
    trials: int
    """Ended so far, stopped ones included."""
    samples: int
    """Training rows that all trials so far went through."""
    share: float
    """Of the reference hypervolume."""


@dataclass(frozen=True)
class Replay:
    """One search on a table."""

    seed: int
    moments: tuple[Moment, ...]
    """In order of time."""
    stopped: int
    """Trials that the rule stopped."""
    asked: int
    sampler_s: float
    """Real seconds of the sampler, asking and telling; the only number here that is not the same at every replay."""

    def first(self, share: float) -> Moment | None:
        """The first moment with at least this share; None where there was none."""
        return next((moment for moment in self.moments if moment.share >= share), None)

    def share_at(self, seconds: float) -> float:
        """The share that was reached by then."""
        return max((moment.share for moment in self.moments if moment.seconds <= seconds), default=0.0)


@dataclass(frozen=True)
class Band:
    """A statistic over seeds with its bootstrap interval (95 %)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Contest:
    """Replays of several ways to search, by name, on one table."""

    table: str
    configs: int
    workers: int
    replays: Mapping[str, tuple[Replay, ...]]

    def seconds_to(self, name: str, share: float) -> Band:
        """Median over seeds of the seconds to a share; infinite where half of the seeds did not reach it."""
        return bootstrap([_seconds(replay.first(share)) for replay in self.replays[name]], np.median)

    def samples_to(self, name: str, share: float) -> float:
        """Median over seeds of the training rows to a share."""
        found = [moment.samples if (moment := one.first(share)) else np.inf for one in self.replays[name]]
        return float(np.median(found))

    def trials_to(self, name: str, share: float) -> float:
        """Median over seeds of the ended trials to a share."""
        found = [moment.trials if (moment := one.first(share)) else np.inf for one in self.replays[name]]
        return float(np.median(found))

    def curve(self, name: str, times: Sequence[float]) -> tuple[Band, ...]:
        """Mean share over seeds at these times."""
        return tuple(bootstrap([one.share_at(time) for one in self.replays[name]], np.mean) for time in times)

    def sampler_s(self, name: str) -> float:
        """Real seconds per proposal."""
        replays = self.replays[name]
        return sum(one.sampler_s for one in replays) / max(1, sum(one.asked for one in replays))

    def stopped_share(self, name: str) -> float:
        """Share of the trials that were stopped."""
        replays = self.replays[name]
        return sum(one.stopped for one in replays) / max(1, sum(one.asked for one in replays))


def bootstrap(values: Sequence[float], statistic: object) -> Band:
    """A statistic (`numpy.mean` or `numpy.median`) of values with its percentile interval over 1,000 resamples."""
    assert callable(statistic)
    array = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(array), size=(_RESAMPLES, len(array)))
    with np.errstate(invalid="ignore"):
        found = np.asarray(statistic(array[drawn], axis=1))
        value = float(statistic(array))
    low, high = (float(np.quantile(found, at, method="inverted_cdf")) for at in (0.025, 0.975))
    return Band(value, low, high)


def _seconds(moment: Moment | None) -> float:
    return np.inf if moment is None else moment.seconds
