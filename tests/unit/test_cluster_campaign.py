"""The search loop keeps the budget, the order of writes, and the front; it loses and repeats nothing."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from autopeft.cluster.campaign import Done, Wait
from autopeft.domain.budget import Budget
from autopeft.domain.errors import RunBusyError
from autopeft.domain.events import (
    Event,
    Notice,
    RungReached,
    RunOpened,
    TrialEnded,
    TrialStarted,
    TrialTakenUp,
)
from autopeft.domain.measurements import Measurements, Rung, TakenUp
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import Failure, FailureReason, Outcome, Trial, TrialStatus
from tests.fakes.campaigns import begun, complete, crash, drive, store_of
from tests.fakes.evaluators import known_measurements
from tests.fakes.searches import ToySampler, toy_campaign


def test_row_is_running_before_the_task_leaves_and_ended_before_the_sampler_and_listeners_hear(tmp_path: Path) -> None:
    store, sampler = store_of(), ToySampler()
    seen: list[tuple[str, TrialStatus, int]] = []

    def listen(event: Event) -> None:
        if isinstance(event, TrialEnded):
            seen.append((event.trial.digest, store.trials()[event.trial.number].status, len(sampler.told)))

    campaign = toy_campaign(store, tmp_path, sampler=sampler, on_event=listen)
    campaign.open()
    task = begun(campaign)
    assert store.trials()[0].status is TrialStatus.RUNNING
    told_when: list[TrialStatus] = []
    tell = sampler.tell
    sampler.tell = lambda scored: (told_when.append(store.trials()[0].status), tell(scored))[1]  # type: ignore[method-assign]
    campaign.finish(task, complete(task))
    assert told_when == [TrialStatus.COMPLETE]
    assert seen == [(task.candidate.digest, TrialStatus.COMPLETE, 1)]
    campaign.close()


def test_all_trials_share_the_seed_of_the_run(tmp_path: Path) -> None:
    store = store_of("5")
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    drive(campaign)
    assert {trial.seed for trial in store.trials()} == {0}
    campaign.close()


@pytest.mark.parametrize("outcome_of", [complete, lambda task: crash()])
def test_budget_of_trials_counts_failures_and_is_never_exceeded(tmp_path: Path, outcome_of: Any) -> None:
    store = store_of("7")
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    assert drive(campaign, outcome_of) == "The budget of 7 trials is used up."
    assert len(store.trials()) == 7
    campaign.close()


def test_budget_of_trials_counts_those_in_flight(tmp_path: Path) -> None:
    campaign = toy_campaign(store_of("3"), tmp_path, workers=8)
    campaign.open()
    tasks = [begun(campaign) for _ in range(3)]
    assert campaign.next() == Wait()
    campaign.finish(tasks[0], crash())
    assert campaign.next() == Wait()
    campaign.finish(tasks[1], complete(tasks[1]))
    campaign.finish(tasks[2], complete(tasks[2]))
    assert isinstance(campaign.next(), Done)
    campaign.close()


def test_a_lost_trial_takes_its_own_place_in_the_budget(tmp_path: Path) -> None:
    store = store_of("2")
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    first, second = begun(campaign), begun(campaign)
    campaign.lost(first, "It was killed.")
    again = begun(campaign)
    assert (again.number, again.attempt) == (0, 2)
    assert campaign.next() == Wait()
    campaign.finish(again, complete(again))
    campaign.finish(second, complete(second))
    assert isinstance(campaign.next(), Done)
    assert [trial.status for trial in store.trials()] == [TrialStatus.COMPLETE] * 2
    campaign.close()


def test_a_trial_whose_worker_dies_every_time_ends_lost(tmp_path: Path) -> None:
    store = store_of("1", retries=2)
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    for attempt in (1, 2, 3):
        task = begun(campaign)
        assert task.attempt == attempt
        campaign.lost(task, "It was killed.")
    assert isinstance(campaign.next(), Done)
    assert store.trials()[0].status is TrialStatus.LOST
    campaign.close()


def test_budget_of_seconds_starts_nothing_new_and_lets_running_trials_finish(tmp_path: Path) -> None:
    store = store_of("10s")
    store.clock = 9.9
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    task = begun(campaign)
    time.sleep(0.15)
    assert campaign.next() == Wait()
    store.clock = 10.1
    campaign.finish(task, complete(task))
    assert store.trials()[0].status is TrialStatus.COMPLETE
    assert campaign.next() == Done("The budget of 10s is used up.")
    campaign.close()


def test_budget_of_gpu_seconds_is_charged_for_failures(tmp_path: Path) -> None:
    store = store_of("1gpu-h")
    store.set_budget(Budget(gpu_seconds=3.9))
    campaign = toy_campaign(store, tmp_path, gpus=0.5)
    campaign.open()
    why = drive(campaign, lambda task: crash())
    assert "GPU-hours" in why
    # Eight failures of one second on half a GPU.
    assert len(store.trials()) == 8
    campaign.close()


def test_a_new_budget_is_stored_once_the_run_is_free_and_not_before(tmp_path: Path) -> None:
    store = store_of("2")
    campaign = toy_campaign(store, tmp_path, budget=Budget(trials=5))
    open_session = store.open_session

    def busy() -> list[Trial]:
        raise RunBusyError("another process has it")

    store.open_session = busy  # type: ignore[method-assign]
    with pytest.raises(RunBusyError):
        campaign.open()
    assert store.budget() == Budget(trials=2)

    store.open_session = open_session  # type: ignore[method-assign]
    campaign.open()
    assert store.budget() == Budget(trials=5)
    drive(campaign)
    assert len(store.trials()) == 5
    campaign.close()


def test_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    store = store_of("100")
    campaign = toy_campaign(store, tmp_path, sampler=ToySampler(size=3))
    campaign.open()
    assert drive(campaign) == "Every candidate of the space was proposed."
    assert len(store.trials()) == 3
    campaign.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_odd_objective_value_is_recorded_as_invalid(tmp_path: Path, value: float) -> None:
    store = store_of("1")
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    task = begun(campaign)
    campaign.finish(task, complete(task, accuracy=value))
    (trial,) = store.trials()
    assert trial.status is TrialStatus.INVALID
    assert trial.failure is not None
    assert trial.failure.reason is FailureReason.NOT_FINITE
    assert "accuracy" in trial.failure.text
    assert campaign.front.members == ()
    campaign.close()


@pytest.mark.parametrize("field", ["quality", "train_peak"])
def test_a_missing_objective_value_is_recorded_as_invalid(tmp_path: Path, field: str) -> None:
    store = store_of("1")
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    task = begun(campaign)
    without = known_measurements(task).model_dump(exclude={field})
    campaign.finish(
        task, Outcome(status=TrialStatus.COMPLETE, measurements=Measurements.model_validate(without), seconds=1)
    )
    (trial,) = store.trials()
    assert trial.status is TrialStatus.INVALID
    assert trial.failure is not None
    assert trial.failure.reason is FailureReason.MISSING_METRIC
    assert {"quality": "accuracy", "train_peak": "train_peak_bytes"}[field] in trial.failure.text
    campaign.close()


def test_late_results_and_rungs_of_an_earlier_attempt_change_nothing(tmp_path: Path) -> None:
    store, events = store_of("1"), []
    campaign = toy_campaign(store, tmp_path, on_event=events.append)
    campaign.open()
    first = begun(campaign)
    campaign.lost(first, "It went silent.")
    second = begun(campaign)
    rung = Rung(step=1, planned_steps=2, quality={}, train_loss=1.0, train_s=1.0)
    campaign.rung(first.number, first.attempt, rung)
    campaign.finish(first, crash())
    campaign.lost(first, "again")
    assert store.trials()[0].status is TrialStatus.RUNNING
    assert not [event for event in events if isinstance(event, RungReached)]
    campaign.rung(second.number, second.attempt, rung)
    campaign.finish(second, complete(second))
    campaign.finish(second, crash())
    assert store.trials()[0].status is TrialStatus.COMPLETE
    assert [event for event in events if isinstance(event, RungReached)] == [RungReached(0, rung)]
    campaign.close()


@pytest.mark.parametrize("told", [False, True])
def test_what_is_wrong_with_a_checkpoint_is_said_once(tmp_path: Path, told: bool) -> None:
    store, events = store_of("1"), []
    campaign = toy_campaign(store, tmp_path, on_event=events.append)
    campaign.open()
    task = begun(campaign)
    problem = "no checkpoint could be written: the disk is full"
    if told:
        campaign.taken_up(task.number, task.attempt, TakenUp(step=0, planned_steps=2, problem=problem))
    outcome = complete(task)
    measured = outcome.measurements.model_copy(update={"checkpoint_problem": problem})
    campaign.finish(task, outcome.model_copy(update={"measurements": measured}))
    said = [event for event in events if isinstance(event, TrialTakenUp | Notice)]
    assert len(said) == 1
    assert told or said == [Notice(f"trial 0: {problem}")]
    campaign.close()


def test_a_search_that_mostly_fails_stops_and_says_why(tmp_path: Path) -> None:
    store = store_of("100")
    campaign = toy_campaign(store, tmp_path, max_failure_share=0.5)
    campaign.open()
    why = drive(campaign, lambda task: crash() if task.number % 5 < 3 else complete(task))
    assert "6 of 10 trials failed" in why
    assert "cursed" in why
    assert len(store.trials()) == 10
    campaign.close()


def test_a_first_failure_and_infeasible_trials_do_not_stop_a_search(tmp_path: Path) -> None:
    failure = Failure(reason=FailureReason.OUT_OF_MEMORY, text="too large")

    def outcome_of(task: EvaluationTask) -> Outcome:
        if task.number == 0:
            return crash()
        return Outcome(status=TrialStatus.INFEASIBLE, failure=failure)

    store = store_of("30")
    campaign = toy_campaign(store, tmp_path, max_failure_share=0.5)
    campaign.open()
    drive(campaign, outcome_of)
    assert len(store.trials()) == 30
    campaign.close()


def test_a_search_gone_on_with_shows_the_sampler_everything_and_starts_what_was_left(tmp_path: Path) -> None:
    store = store_of("6")
    killed = toy_campaign(store, tmp_path, workers=2)
    killed.open()
    done = begun(killed)
    killed.finish(done, complete(done))
    left = [begun(killed), begun(killed)]
    killed._heartbeat.stop()  # as if its process had died

    events: list[Event] = []
    sampler = ToySampler()
    campaign = toy_campaign(store, tmp_path, sampler=sampler, on_event=events.append)
    campaign.open()
    opened = events[0]
    assert isinstance(opened, RunOpened)
    assert (opened.resumed, opened.done, opened.lost, opened.pending) == (True, 1, 2, 2)
    assert opened.counts == {TrialStatus.COMPLETE: 1, TrialStatus.PENDING: 2}
    assert opened.front == campaign.front
    assert [one.trial.number for one in sampler.replayed] == [0, 1, 2]
    assert campaign.front.numbers == {0}
    drive(campaign)
    started = [event.trial.number for event in events if isinstance(event, TrialStarted)]
    assert started == [one.number for one in left] + [3, 4, 5]
    assert {trial.status for trial in store.trials()} == {TrialStatus.COMPLETE}
    campaign.close()


def test_a_trial_that_may_bring_the_driver_down_comes_after_everything_else_that_waits(tmp_path: Path) -> None:
    store = store_of("6")
    for starts in (3, 1):
        killed = toy_campaign(store, tmp_path, workers=3)
        killed.open()
        for _ in range(starts):
            begun(killed)
        killed._heartbeat.stop()  # as if its process had died
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    assert [trial.driver_deaths for trial in store.trials()] == [2, 1, 1]
    order = []
    while isinstance(task := campaign.next(), EvaluationTask):
        order.append(task.number)
        campaign.finish(task, complete(task))
    assert order == [1, 2, 0, 3, 4, 5]
    campaign.close()


def test_closing_puts_running_trials_back(tmp_path: Path) -> None:
    store = store_of()
    campaign = toy_campaign(store, tmp_path, workers=2)
    campaign.open()
    begun(campaign), begun(campaign)
    campaign.close()
    assert [trial.status for trial in store.trials()] == [TrialStatus.PENDING] * 2
    assert store.calls[-1] == "close"


def test_the_front_of_each_event_is_the_front_of_everything_ended(tmp_path: Path) -> None:
    from autopeft.domain.results import Front, score

    store, events = store_of("40"), []
    campaign = toy_campaign(store, tmp_path, on_event=events.append)
    campaign.open()
    drive(campaign)
    ended = [event for event in events if isinstance(event, TrialEnded)]
    for count, event in enumerate(ended, start=1):
        scored = [score(trial, event.front.objectives) for trial in store.trials()[:count]]
        assert event.front.numbers == Front.of(event.front.objectives, scored).numbers
    campaign.close()


def test_a_session_that_was_taken_over_starts_nothing_more(tmp_path: Path) -> None:
    store = store_of()
    campaign = toy_campaign(store, tmp_path)
    campaign.open()

    def taken() -> None:
        raise RunBusyError("taken")

    campaign._heartbeat._beat = taken
    campaign._heartbeat._period_s = 0.01
    thread = campaign._heartbeat._thread
    assert thread is not None
    thread.join(timeout=5)
    with pytest.raises(RunBusyError):
        campaign.next()
    assert store.trials() == []
    campaign.close()
