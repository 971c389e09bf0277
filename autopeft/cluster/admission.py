"""Which candidates may train at all: what is predicted of them, corrected by what was measured, against the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.domain.calibration import Calibration, foretold_bytes, kind_of, observations
from autopeft.domain.candidate import Candidate
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.memory import Prediction
from autopeft.domain.ports import MemoryForecast
from autopeft.domain.trial import Failure, FailureReason, Outcome, Trial, TrialStatus

Opening = Callable[[], MemoryForecast]
"""Makes a forecast when it is first needed: it has to build the model."""


@dataclass(frozen=True)
class Limits:
    """What a trial may take; None where nothing is known."""

    live_bytes: int | None = None
    """Of `train_peak_bytes`: the person's own limit."""
    device_bytes: int | None = None
    """What a worker's allocator may hold of its device."""


@dataclass(frozen=True)
class Foretold:
    """What is predicted of a candidate; None where it cannot be told or was not asked for."""

    peak: PeakMemory | None = None
    """Of the training phase, uncorrected."""
    estimation: PeakMemory | None = None
    """Of the estimation phase of a pruning."""
    elsewhere: PeakMemory | None = None
    """Of the training phase on the model and at the size that is searched for."""
    trainable_parameters: int | None = None
    """Exact."""

    def measurements(self, calibration: Calibration) -> dict[str, Any]:
        """The fields of `Measurements` that say it."""
        found = {
            "foretold_peak": self.peak,
            "foretold_estimation_peak": self.estimation,
            "calibrated_peak_bytes": None if self.peak is None else round(calibration.expected(self.peak.live_bytes)),
            "elsewhere_peak": self.elsewhere,
        }
        return {name: value for name, value in found.items() if value is not None}


def _nothing_said(text: str) -> None:
    pass


class Admission:
    """Foretells candidates and refuses those that would not fit.

    Everything it says is a function of the candidate and of the trials that ended, so that a search that goes on
    refuses what an undisturbed one would. Where a candidate cannot be foretold it is trained as it would be without
    predictions, unless a prediction was asked for as an objective.
    """

    def __init__(
        self,
        forecast: Opening | None = None,
        *,
        limits: Limits = Limits(),
        elsewhere: MemoryForecast | None = None,
        say: Callable[[str], None] = _nothing_said,
    ) -> None:
        """`elsewhere` foretells the same candidates at the size that is searched for; `say` is told once what a person
        should know."""
        self._opening = forecast
        self._forecast: MemoryForecast | None = None
        self._limits = limits
        self._elsewhere = elsewhere
        self._say = say
        self._told: set[str] = set()
        self._trials: dict[int, Trial] = {}
        self._live: Calibration | None = None
        self._reserved: Calibration | None = None
        self._foretold: dict[str, Foretold] = {}

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take in trials that ended, in any order."""
        ended = {trial.number: trial for trial in trials if trial.status.ended and not trial.refused}
        if ended:
            self._trials.update(ended)
            self._live = self._reserved = None

    @property
    def calibration(self) -> Calibration:
        """Of live bytes, from the trials so far."""
        if self._live is None:
            limits = [one for one in (self._limits.live_bytes, self._limits.device_bytes) if one is not None]
            self._live = Calibration.of(observations(self._trials.values()), min(limits, default=None))
        return self._live

    @property
    def reserved_calibration(self) -> Calibration:
        """Of what the allocator holds."""
        if self._reserved is None:
            found = observations(self._trials.values(), "reserved")
            self._reserved = Calibration.of(found, self._limits.device_bytes)
        return self._reserved

    def foretell(self, candidate: Candidate) -> Foretold:
        """What is predicted of a candidate; the same at every call."""
        if candidate.digest not in self._foretold:
            self._foretold[candidate.digest] = self._foretell(candidate)
        return self._foretold[candidate.digest]

    def fields(self, candidate: Candidate) -> dict[str, Any]:
        """What is predicted now, as fields of `Measurements`."""
        return self.foretell(candidate).measurements(self.calibration)

    def refusal(self, candidate: Candidate) -> Outcome | None:
        """How the trial of a candidate ends that is not to be trained; None where it is."""
        foretold = self.foretell(candidate)
        measurements = Measurements(**foretold.measurements(self.calibration))
        if self._elsewhere is not None and foretold.elsewhere is None:
            why = self._elsewhere.why_not(candidate)
            failure = Failure(reason=FailureReason.NOT_PREDICTED, text=f"No prediction can be made for it: {why}")
            return Outcome(status=TrialStatus.INFEASIBLE, failure=failure, measurements=measurements)
        over = self._over(candidate, foretold)
        if over is None:
            return None
        needed, limit, margin, what = over
        above = f" and a margin of {margin:.1%}" if margin >= 0.0005 else ""
        failure = Failure(
            reason=FailureReason.PREDICTED_OVER_LIMIT,
            text=f"predicted to need {needed / (1 + margin) / 2**20:.1f} MiB{above}, and {what} is "
            f"{limit / 2**20:.1f} MiB; it was not trained",
            violation=needed / limit - 1,
        )
        return Outcome(status=TrialStatus.INFEASIBLE, failure=failure, measurements=measurements)

    def known(self, candidate: Candidate) -> dict[str, float]:
        """Objective values that need no training: `train_peak_bytes` as calibrated now, the exact
        `trainable_parameters`, and `predicted_peak_bytes` where it is searched for; empty where nothing is known."""
        foretold, found = self.foretell(candidate), {}
        if foretold.peak is not None:
            found["train_peak_bytes"] = self.calibration.expected(foretold.peak.live_bytes)
        if foretold.trainable_parameters is not None:
            found["trainable_parameters"] = float(foretold.trainable_parameters)
        if foretold.elsewhere is not None:
            found["predicted_peak_bytes"] = float(foretold.elsewhere.live_bytes)
        return found

    def _over(self, candidate: Candidate, foretold: Foretold) -> tuple[float, int, float, str] | None:
        """Bytes with their margin, the limit that they break most, the margin, and what the limit is."""
        kind = kind_of(candidate)
        found: list[tuple[float, int, float, str]] = []
        for peak in (foretold.peak, foretold.estimation):
            if peak is None:
                continue
            live, reserved = self.calibration, self.reserved_calibration
            if self._limits.live_bytes is not None:
                needed = live.bound(peak.live_bytes, kind)
                found.append((needed, self._limits.live_bytes, live.margin_of(kind), "the limit"))
            if self._limits.device_bytes is not None:
                needed = reserved.bound(foretold_bytes(peak, "reserved"), kind)
                what = "what a worker has of its GPU"
                found.append((needed, self._limits.device_bytes, reserved.margin_of(kind), what))
        worst = max(found, key=lambda one: one[0] / one[1], default=None)
        return worst if worst is not None and worst[0] > worst[1] else None

    def _foretell(self, candidate: Candidate) -> Foretold:
        forecast = self._opened()
        peak = estimation = elsewhere = trainable = None
        if forecast is not None:
            said = forecast.predict(candidate)
            if said is None:
                self._once(f"unknown {kind_of(candidate)}", _untold(candidate, forecast.why_not(candidate)))
            else:
                peak = _peak(said)
                # A pruning takes modules away, and scores decide which.
                trainable = said.trainable_parameters if candidate.pruning is None else None
                before = forecast.estimation(candidate)
                estimation = None if before is None else _peak(before)
        if self._elsewhere is not None:
            there = self._elsewhere.predict(candidate)
            elsewhere = None if there is None else _peak(there)
        return Foretold(peak, estimation, elsewhere, trainable)

    def _opened(self) -> MemoryForecast | None:
        if self._forecast is None and self._opening is not None:
            opening, self._opening = self._opening, None
            try:
                self._forecast = opening()
            except Exception as error:  # a prediction is a service: without it, trials measure for themselves
                self._once("opening", f"Memory is not predicted in this search: {type(error).__name__}: {error}")
        return self._forecast

    def _once(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._say(text)


def _peak(said: Prediction) -> PeakMemory:
    return PeakMemory(
        live_bytes=said.train_peak_bytes, source=MemorySource.PREDICTED, reserved_bytes=said.train_peak_reserved_bytes
    )


def _untold(candidate: Candidate, why: str) -> str:
    return (
        f"The memory of {kind_of(candidate)} cannot be predicted ({why or 'no reason given'}); such trials begin, and "
        "end where they are measured above the limit."
    )
