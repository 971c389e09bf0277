"""Driving a campaign step by step: stores, tasks and outcomes."""

from __future__ import annotations

from typing import Any

from autopeft.cluster.campaign import Campaign, Done, Refused
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus
from tests.fakes.evaluators import known_measurements
from tests.fakes.searches import toy_record
from tests.fakes.stores import MemoryRunStore


def store_of(budget: str = "12", **more: Any) -> MemoryRunStore:
    """A store with an empty toy run."""
    return MemoryRunStore(toy_record(budget=budget, **more))


def begun(campaign: Campaign) -> EvaluationTask:
    """The next task; there must be one."""
    task = campaign.next()
    assert isinstance(task, EvaluationTask)
    return task


def complete(task: EvaluationTask, **quality: float) -> Outcome:
    """The task done, with known measurements or this quality."""
    measurements = known_measurements(task)
    if quality:
        measurements = measurements.model_copy(update={"quality": quality})
    return Outcome(status=TrialStatus.COMPLETE, measurements=measurements, seconds=1.0)


def crash() -> Outcome:
    """An evaluation that raised."""
    failure = Failure(reason=FailureReason.EXCEPTION, text="ValueError: cursed")
    return Outcome(status=TrialStatus.CRASHED, failure=failure, seconds=1.0)


def drive(campaign: Campaign, outcome_of: Any = complete) -> str:
    """One worker, to the end."""
    while isinstance(task := campaign.next(), EvaluationTask | Refused):
        if isinstance(task, EvaluationTask):
            campaign.finish(task, outcome_of(task))
    assert isinstance(task, Done)
    return task.why
