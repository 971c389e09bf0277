"""How much of its training a trial got, and what ending trials early saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from autopeft.domain.measurements import Rung
from autopeft.domain.results import RunRecord
from autopeft.domain.trial import Trial, TrialStatus

_LARGEST_DENOMINATOR = 100


@dataclass(frozen=True)
class Stop:
    """Where a trial was stopped early."""

    share: str
    """Of the planned steps, as a person writes it: `1/3`, `45 %`."""
    fidelity: float
    """The same as a number from 0 to 1, of the steps that were really done."""
    quality: dict[str, float]
    """Validation metrics there."""


@dataclass(frozen=True)
class Saved:
    """Training that was planned for the trials that were stopped early and not done."""

    trials: int
    """Stopped early."""
    steps: int
    """Optimiser steps not done."""
    samples: int
    """Training rows not gone through, a row counted once per epoch."""
    share: float
    """Of the steps planned for all trials that were trained to their end or stopped, from 0 to 1."""


def stop_of(trial: Trial, shares: Sequence[float]) -> Stop | None:
    """Where a trial was stopped; None for every other trial.

    `shares` are the rungs of the search, as shares of the planned steps.
    """
    if trial.status is not TrialStatus.STOPPED_EARLY or trial.measurements is None or not trial.measurements.rungs:
        return None
    rung = trial.measurements.rungs[-1]
    return Stop(share_text(rung, shares), rung.fidelity, dict(rung.quality))


def share_text(rung: Rung, shares: Sequence[float]) -> str:
    """The rung among `shares` as a fraction; per cent where it is none of them, or no plain fraction."""
    for share in shares:
        fraction = Fraction(share).limit_denominator(_LARGEST_DENOMINATOR)
        # A rung comes after whole steps, so 1/9 of 80 steps is step 9.
        if max(1, round(share * rung.planned_steps)) == rung.step and abs(float(fraction) - share) < 1e-9:
            return str(fraction)
    return f"{100 * rung.fidelity:.0f} %"


def saved_by_stopping(record: RunRecord, trials: Iterable[Trial]) -> Saved | None:
    """What early stopping saved; None where no trial was stopped."""
    planned = missing = stopped = 0
    for trial in trials:
        measured = trial.measurements
        if measured is None or trial.status not in (TrialStatus.COMPLETE, TrialStatus.STOPPED_EARLY):
            continue
        planned += measured.planned_steps
        if trial.status is TrialStatus.STOPPED_EARLY:
            stopped += 1
            missing += measured.planned_steps - measured.steps
    if not stopped or not planned:
        return None
    training = record.spec.training
    return Saved(stopped, missing, missing * training.batch_size * training.gradient_accumulation, missing / planned)
