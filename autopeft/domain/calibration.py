"""How far predicted memory can be trusted: a correction and a margin, learned from the trials that were measured.

Pure functions of the trial table, so that a search that goes on corrects and refuses as an undisturbed one would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.candidate import Candidate
from autopeft.domain.measurements import PeakMemory
from autopeft.domain.trial import FailureReason, Trial, TrialStatus

Array = NDArray[np.float64]
Quantity = Literal["live", "reserved"]
"""Bytes that tensors hold, or that a caching allocator holds of the device."""

WINDOW = 64
"""So many of the latest observations are looked at."""
LEAST = 3
"""Observations below which nothing is corrected."""
STEP = 0.05
"""How much an error that may not concern a candidate (it was of other methods, or another process may have taken the
memory) adds to its margin."""
_BETTER = 0.8
"""A correction with more constants is taken where it leaves at most this share of a simpler one's error."""
_COVERED = 0.9
"""Share of the errors that the margin covers when none has done harm."""


@dataclass(frozen=True)
class Observation:
    """A prediction, and what came of it."""

    number: int
    """Of the trial."""
    kind: str
    """Methods and treatments, for errors that are alike."""
    predicted: float
    """Bytes, uncorrected."""
    measured: float | None
    """Bytes; None where memory ran out, or training ended before its heaviest step."""
    wrong: bool = False
    """Whether the trial was predicted to fit and did not."""


def kind_of(candidate: Candidate) -> str:
    """Names of methods and treatments: `lora+prefix|ist`."""
    methods = "+".join(sorted({one.method for one in candidate.insertions})) or "head"
    return "|".join([methods, *(chosen for _, chosen, _ in candidate.treatments())])


def observations(trials: Iterable[Trial], quantity: Quantity = "live") -> tuple[Observation, ...]:
    """What trials tell about the predictions made of them, in order of number."""
    found: list[Observation] = []
    for trial in sorted(trials, key=lambda one: one.number):
        measured = trial.measurements
        if measured is None or trial.refused or not trial.status.ended:
            continue
        reason = trial.failure.reason if trial.failure is not None else None
        over = trial.status is TrialStatus.INFEASIBLE and reason is FailureReason.OVER_LIMIT
        ran_out = trial.status is TrialStatus.INFEASIBLE and reason is FailureReason.OUT_OF_MEMORY
        whole = measured.steps > 0 and measured.steps == measured.planned_steps
        phases = (
            (measured.foretold_estimation_peak, measured.estimation_peak, whole or measured.train_peak is not None),
            (measured.foretold_peak, measured.train_peak, whole),
        )
        # What went over the limit did so in the last phase that has a peak; it is measured up to there.
        last = max((at for at, phase in enumerate(phases) if phase[1] is not None), default=1)
        for at, (foretold, peak, done) in enumerate(phases):
            if foretold is None:
                continue
            predicted = float(foretold_bytes(foretold, quantity))
            here = at == last
            seen = _measured(peak, quantity) if done or (over and here) else None
            # A limit is of live bytes, memory that runs out of reserved ones as well.
            wrong = here and (ran_out or (over and quantity == "live"))
            if seen is not None or wrong:
                found.append(Observation(trial.number, kind_of(trial.candidate), predicted, seen, wrong))
    return tuple(found)


def foretold_bytes(peak: PeakMemory, quantity: Quantity) -> int:
    """What a prediction says of a quantity; where no allocator was modelled, live bytes stand for reserved ones too,
    and the correction learns what the allocator adds."""
    return peak.live_bytes if quantity == "live" else peak.reserved_bytes or peak.live_bytes


def _measured(peak: PeakMemory | None, quantity: Quantity) -> float | None:
    if peak is None:
        return None
    found = peak.live_bytes if quantity == "live" else peak.reserved_bytes
    return float(found) if found else None


@dataclass(frozen=True)
class Correction:
    """What is expected to be measured: `scale` times the prediction, and `offset` bytes."""

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, predicted: float) -> float:
        return self.scale * predicted + self.offset


@dataclass(frozen=True)
class Calibration:
    """A correction of predictions, and how much is added to stay below a limit."""

    correction: Correction = Correction()
    margin: float = 0.0
    """Share of the corrected prediction, for every candidate."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """The same for kinds of candidates that were predicted to fit and did not."""

    def expected(self, predicted: float) -> float:
        """Bytes that will probably be measured."""
        return self.correction(predicted)

    def margin_of(self, kind: str) -> float:
        """Share of the expectation that is added for candidates of a kind."""
        return max(self.margin, self.margins.get(kind, 0.0))

    def bound(self, predicted: float, kind: str) -> float:
        """Bytes that a candidate of this kind will hardly exceed: what is held against a limit."""
        return self.expected(predicted) * (1.0 + self.margin_of(kind))

    @classmethod
    def of(cls, found: Sequence[Observation], limit: float | None = None) -> Calibration:
        """Learn from observations.

        Medians throughout, so that a few odd trials move nothing. The correction is the simplest of none, a factor, an
        offset, and both (Theil and Sen's line) that foretells each observation well from the others. The margin covers
        90 % of what the others' correction leaves too low. It widens where a trial was predicted to fit and did not:
        for the same methods by the whole error, for others by at most 5 %. A trial that ran out of memory says only
        that it needed more than was foretold: 5 % for each, up to what refuses them.

        Args:
            found: As `observations` returns them.
            limit: Bytes that trials may take; None where that is unknown.
        """
        recent = sorted(found, key=lambda one: one.number)[-WINDOW:]
        seen = [one for one in recent if one.measured is not None]
        predicted = np.array([one.predicted for one in seen])
        measured = np.array([one.measured for one in seen], dtype=float)
        correction, left_out = _fitted(predicted, measured)
        margin = _covering(measured / left_out - 1.0) if len(seen) else 0.0
        margins: dict[str, float] = {}
        for one in recent:
            if one.wrong and one.measured is not None:
                missed = one.measured / correction(one.predicted) - 1.0
                margins[one.kind] = max(margins.get(one.kind, 0.0), missed)
                margin = max(margin, min(missed, STEP))
        ran_out = [correction(one.predicted) for one in recent if one.wrong and one.measured is None]
        if ran_out:
            # Enough to refuse the smallest of them is enough.
            most = math.inf if limit is None else max(0.0, limit / min(ran_out) - 1.0) + 1e-9
            margin = max(margin, min(STEP * len(ran_out), most))
        return cls(correction, margin, margins)


def _covering(errors: Array) -> float:
    """The error that covers a share of `_COVERED` of a further one (split conformal prediction); 0 or more."""
    place = math.ceil(_COVERED * (len(errors) + 1))
    return max(0.0, float(np.sort(errors)[min(place, len(errors)) - 1]))


def _fitted(predicted: Array, measured: Array) -> tuple[Correction, Array]:
    """A correction, and for each observation what a correction of the same form says that did not see it."""
    best, said = Correction(), predicted
    if len(predicted) < LEAST:
        return best, said
    error = float(np.abs(said / measured - 1.0).mean())
    for form in (_scale, _offset, _line):
        others = [form(np.delete(predicted, at), np.delete(measured, at)) for at in range(len(predicted))]
        whole = form(predicted, measured)
        if whole is None or any(one is None for one in others):
            continue
        foretold = np.array([one(value) for one, value in zip(others, predicted, strict=True) if one is not None])
        found = float(np.abs(foretold / measured - 1.0).mean())
        if found < _BETTER * error:
            best, said, error = whole, foretold, found
    return best, said


def _scale(predicted: Array, measured: Array) -> Correction | None:
    return Correction(scale=float(np.median(measured / predicted)))


def _offset(predicted: Array, measured: Array) -> Correction | None:
    offset = float(np.median(measured - predicted))
    return Correction(offset=offset) if offset > -float(predicted.min()) else None


def _line(predicted: Array, measured: Array) -> Correction | None:
    """Median of the slopes between all pairs, then of the rests (Sen, JASA 1968); None where it would not rise."""
    first, second = np.triu_indices(len(predicted), 1)
    apart = predicted[second] - predicted[first]
    slopes = (measured[second] - measured[first])[apart != 0] / apart[apart != 0]
    if len(slopes) < LEAST:
        return None
    slope = float(np.median(slopes))
    if slope <= 0:
        return None
    found = Correction(slope, float(np.median(measured - slope * predicted)))
    return found if found(float(predicted.min())) > 0 else None


@dataclass(frozen=True)
class PredictionErrors:
    """How far predictions lay off what was measured, as shares of the measured bytes; above 0 is predicted too high."""

    trials: int
    bias: float
    """Mean."""
    median: float
    """Of the absolute errors."""
    worst: float
    """The error that is largest in absolute value."""
    worst_trial: int
    calibrated_bias: float
    """Mean of what the corrections were off that were made before each trial."""
    calibrated_median: float
    calibrated_worst: float

    def __str__(self) -> str:
        text = (
            f"within {self.median:.2%} (median), bias {self.bias:+.2%}, worst {self.worst:+.2%} "
            f"(trial {self.worst_trial}), over {self.trials} trial{'s' if self.trials != 1 else ''}"
        )
        if self.calibrated_median == self.median and self.calibrated_worst == self.worst:
            return text
        return (
            f"{text}; as corrected by earlier trials {self.calibrated_median:.2%}, worst {self.calibrated_worst:+.2%}"
        )


def prediction_errors(trials: Iterable[Trial]) -> PredictionErrors | None:
    """The run's own error of `train_peak`, over all trials that measured it to the end; None where there is none."""
    raw: list[float] = []
    calibrated: list[float] = []
    numbers: list[int] = []
    for trial in trials:
        found = trial.measurements
        if found is None or found.train_peak is None or found.foretold_peak is None or not trial.status.ended:
            continue
        if found.steps != found.planned_steps or not found.train_peak.live_bytes:
            continue
        foretold, measured = found.foretold_peak.live_bytes, found.train_peak.live_bytes
        raw.append(foretold / measured - 1.0)
        calibrated.append((found.calibrated_peak_bytes or foretold) / measured - 1.0)
        numbers.append(trial.number)
    if not raw:
        return None
    worst = int(np.argmax(np.abs(raw)))
    return PredictionErrors(
        trials=len(raw),
        bias=float(np.mean(raw)),
        median=float(np.median(np.abs(raw))),
        worst=raw[worst],
        worst_trial=numbers[worst],
        calibrated_bias=float(np.mean(calibrated)),
        calibrated_median=float(np.median(np.abs(calibrated))),
        calibrated_worst=calibrated[int(np.argmax(np.abs(calibrated)))],
    )
