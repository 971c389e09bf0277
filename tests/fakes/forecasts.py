"""A world in which the memory of a candidate is known, and forecasts of it that may be wrong."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.cluster.admission import Admission, Limits
from autopeft.domain.candidate import Candidate
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.memory import Prediction
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus
from tests.fakes.evaluators import known_measurements

MIB = 2**20


def needs(candidate: Candidate) -> float:
    """Bytes that training a candidate takes, in this file's world."""
    return 50 * MIB + sum(
        int(one.settings.get("rank", 1)) * len(one.layers) * MIB * (1.5 if one.method == "dora" else 1.0)
        for one in candidate.insertions
    )


def prediction(live: float, reserved: float | None = None) -> Prediction:
    """A prediction of so many bytes; what it consists of is of no concern here."""
    parts = {name: 0 for name, field in Prediction.model_fields.items() if field.is_required()}
    said = {"train_peak_bytes": round(live), "trainable_parameters": 1234, "where": "optimiser step"}
    if reserved is not None:
        said["train_peak_reserved_bytes"] = round(reserved)
    return Prediction.model_validate({**parts, **said})


class FakeForecast:
    """Says what `said` says; None is no prediction."""

    def __init__(self, said: Callable[[Candidate], float | None] = needs, reserved: float | None = None) -> None:
        self.said = said
        self.reserved = reserved
        self.asked = 0

    def predict(self, candidate: Candidate) -> Prediction | None:
        self.asked += 1
        found = self.said(candidate)
        return None if found is None else prediction(found, None if self.reserved is None else found * self.reserved)

    def why_not(self, candidate: Candidate) -> str:
        return "" if self.said(candidate) is not None else "RuntimeError: no meta kernel"

    def estimation(self, candidate: Candidate) -> Prediction | None:
        return None


def measuring(limit: float, truth: Callable[[Candidate], float] = needs) -> Callable[[EvaluationTask], Outcome]:
    """An evaluation that ends at its first step where it needs more than the limit, as the real one does."""

    def outcome_of(task: EvaluationTask) -> Outcome:
        bytes_ = truth(task.candidate)
        peak = PeakMemory(live_bytes=round(bytes_), source=MemorySource.TRACKED)
        if bytes_ > limit:
            measured = Measurements(train_peak=peak, steps=2, planned_steps=10)
            failure = Failure(reason=FailureReason.OVER_LIMIT, text="too much", violation=bytes_ / limit - 1)
            return Outcome(status=TrialStatus.INFEASIBLE, failure=failure, measurements=measured, seconds=1.0)
        measured = known_measurements(task).model_copy(update={"train_peak": peak})
        return Outcome(status=TrialStatus.COMPLETE, measurements=measured, seconds=1.0)

    return outcome_of


def admitting(limit: float | None, forecast: FakeForecast | None = None, **more: object) -> Admission:
    chosen = forecast or FakeForecast()
    return Admission(lambda: chosen, limits=Limits(live_bytes=None if limit is None else round(limit)), **more)  # type: ignore[arg-type]
