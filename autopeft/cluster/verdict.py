"""Judging outcomes: which complete ones are invalid, and when a search fails too often to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.domain.measurements import Measurements
from autopeft.domain.objective import Objective
from autopeft.domain.trial import Failure, FailureReason, Outcome, Trial, TrialStatus

LEAST_ENDED = 10
"""So many trials must have ended before their failures can stop a search."""
MOST_REFUSED = 100
"""So many candidates may be refused in a row before a search ends."""


def judged(outcome: Outcome, objectives: Sequence[Objective]) -> Outcome:
    """The outcome, or, where it is complete but lacks a finite value of an objective, an invalid one."""
    if outcome.status is not TrialStatus.COMPLETE:
        return outcome
    failure = _flaw(outcome.measurements or Measurements(), objectives)
    if failure is None:
        return outcome
    return outcome.model_copy(update={"status": TrialStatus.INVALID, "failure": failure})


def _flaw(measurements: Measurements, objectives: Sequence[Objective]) -> Failure | None:
    missing, odd = [], []
    for objective in objectives:
        try:
            value = objective(measurements)
            if math.isfinite(value):
                continue
            if math.isnan(value) and not math.isfinite(objective(_with_numbers(measurements))):
                missing.append(objective.name)
            else:
                odd.append(f"{objective.name} is {value}")
        except Exception as error:
            # An objective may come from anywhere; the trial is unusable, the others need not be.
            text = f"The objective {objective.name} raised {type(error).__name__}: {error}"
            return Failure(reason=FailureReason.EXCEPTION, text=text)
    if missing:
        text = f"The evaluation did not measure {' and '.join(missing)}."
        return Failure(reason=FailureReason.MISSING_METRIC, text=text)
    if odd:
        return Failure(reason=FailureReason.NOT_FINITE, text=f"{' and '.join(odd)}.")
    return None


def _with_numbers(measurements: Measurements) -> Measurements:
    """The same with 1.0 for every NaN: an objective that then gives a number had a measurement, and it was NaN."""
    return Measurements.model_validate(_replaced(measurements.model_dump()))


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one) for one in value]
    return 1.0 if isinstance(value, float) and math.isnan(value) else value


def with_fields(outcome: Outcome, fields: Mapping[str, Any]) -> Outcome:
    """The outcome with these fields in its measurements."""
    if not fields:
        return outcome
    measured = (outcome.measurements or Measurements()).model_copy(update=dict(fields))
    return outcome.model_copy(update={"measurements": measured})


class Refusals:
    """Counts the candidates that were refused before they trained, and says when there is no end to it.

    A refusal costs no budget, so that a limit which nothing fits would be searched for ever.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._in_all = 0
        self._last = ""

    def replay(self, trials: Sequence[Trial]) -> None:
        """Take in a stored run, in order of number."""
        for trial in trials:
            self.count(trial)

    def count(self, trial: Trial) -> None:
        """Take note of a new trial, refused or not."""
        if not trial.refused:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._in_all += 1
        self._last = trial.failure.text if trial.failure else ""

    def aside(self) -> str:
        """How many were refused, as the rest of a sentence; empty for none."""
        return f"; {self._in_all} of them were refused, as they would not fit" if self._in_all else ""

    def exceeded(self) -> str | None:
        """The sentence to stop with, or None."""
        if self._in_a_row < MOST_REFUSED:
            return None
        return (
            f"{self._in_a_row} candidates in a row were refused before they trained, so hardly one of the space fits; "
            f"the last one: {self._last}. Raise --max-memory, or choose a smaller space, model or batch."
        )


class FailureRate:
    """Counts the trials that ended in this session, and says when too many of them failed.

    Earlier sessions do not count: whoever starts a stopped search again has mended something.
    """

    _FAILED = frozenset({TrialStatus.CRASHED, TrialStatus.LOST, TrialStatus.INVALID})

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._ended = 0
        self._failed = 0
        self._last = ""

    def count(self, trial: Trial) -> None:
        """Take note of an ended trial."""
        self._ended += 1
        if trial.status in self._FAILED:
            self._failed += 1
            self._last = trial.failure.text if trial.failure else trial.status.value

    def exceeded(self) -> str | None:
        """The sentence to stop with, or None."""
        if self._ended < LEAST_ENDED or self._failed <= self._max_share * self._ended:
            return None
        return (
            f"{self._failed} of {self._ended} trials failed, more than the allowed share of {self._max_share:g}; "
            f"the last one: {self._last}"
        )
