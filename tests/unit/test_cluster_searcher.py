"""Ray is handed nothing that knows the store, and what a campaign raises reaches the runner."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

pytest.importorskip("ray.tune")

from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError

from autopeft.cluster.searcher import CampaignSearcher
from autopeft.cluster.worker import GROWTH_BYTES, Key, MemoryWatch, encode
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus
from autopeft.store import open_store
from tests.fakes.evaluators import known_measurements
from tests.fakes.searches import toy_campaign, toy_record
from tests.fakes.stores import MemoryRunStore


def test_no_pickle_of_the_searcher_holds_the_database_url(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'secret-sentinel.sqlite'}")
    searcher = CampaignSearcher(toy_campaign(store.create(toy_record()), tmp_path), workers=2)
    for dumped in (pickle.dumps(searcher), cloudpickle.dumps(searcher)):
        assert b"sentinel" not in dumped
    searcher.save_to_dir(str(tmp_path / "tune"))
    assert not (tmp_path / "tune").exists()
    store.close()


def test_no_more_tasks_than_workers_are_handed_out_and_all_of_them_end(tmp_path: Path) -> None:
    store = MemoryRunStore(toy_record(budget="3"))
    campaign = toy_campaign(store, tmp_path, workers=2)
    campaign.open()
    searcher = CampaignSearcher(campaign, workers=2)
    suggested = [searcher.suggest(name) for name in "abc"]
    assert [one is None for one in suggested] == [False, False, True]
    assert isinstance(suggested[0], dict)
    task = EvaluationTask.model_validate_json(suggested[0][Key.TASK])
    outcome = Outcome(status=TrialStatus.COMPLETE, measurements=known_measurements(task))
    # An outcome that recycles its worker comes as a result, and the end of the actor as an error after it.
    searcher.on_trial_result("a", {Key.OUTCOME: encode(outcome)})
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("b", error=True)
    assert [trial.status for trial in store.trials()] == [TrialStatus.COMPLETE, TrialStatus.PENDING]
    for name in "de":
        (again,) = [searcher.suggest(name)]
        assert isinstance(again, dict)
        searcher.on_trial_complete(name, {Key.OUTCOME: encode(outcome), "done": True})
    assert searcher.suggest("f") == "FINISHED"
    assert searcher.why == "The budget of 3 trials is used up."
    assert searcher.error is None
    campaign.close()


def test_an_error_of_the_store_is_kept_for_the_runner(tmp_path: Path) -> None:
    store = MemoryRunStore(toy_record())
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    searcher = CampaignSearcher(campaign, workers=1)
    searcher.suggest("a")

    def full(*_: object) -> None:
        raise OSError("the disk is full")

    store.finish = full  # type: ignore[assignment,method-assign]
    failure = Failure(reason=FailureReason.EXCEPTION, text="x")
    searcher.on_trial_complete("a", {Key.OUTCOME: encode(Outcome(status=TrialStatus.CRASHED, failure=failure))})
    assert isinstance(searcher.error, OSError)
    assert searcher.suggest("b") is None
    campaign.close()


def test_only_a_worker_that_ended_for_want_of_memory_makes_its_trial_infeasible(tmp_path: Path) -> None:
    store = MemoryRunStore(toy_record(budget="3"))
    campaign = toy_campaign(store, tmp_path, workers=2)
    campaign.open()
    searcher = CampaignSearcher(campaign, workers=2)
    rays_words = "1 worker(s) were killed due to the node running low on memory. Memory on the node was 23GB used"
    for name, error in (("a", OutOfMemoryError(rays_words)), ("b", ActorDiedError())):
        assert searcher.suggest(name)
        searcher.on_trial_error(name, f"Failure # 1 (occurred at noon)\n{error}\n")
        searcher.on_trial_complete(name, error=True)
    first, second = store.trials()
    assert first.status is TrialStatus.INFEASIBLE
    assert first.failure is not None
    assert first.failure.reason is FailureReason.OUT_OF_MEMORY
    assert second.status is TrialStatus.PENDING
    assert searcher.error is None
    campaign.close()


def test_outcomes_travel_with_nan_and_infinity(tmp_path: Path) -> None:
    campaign = toy_campaign(MemoryRunStore(toy_record()), tmp_path)
    campaign.open()
    task = campaign.next()
    assert isinstance(task, EvaluationTask)
    measured = known_measurements(task).model_copy(
        update={"quality": {"accuracy": float("nan")}, "train_s": float("inf")}
    )
    back = Outcome.model_validate_json(encode(Outcome(status=TrialStatus.COMPLETE, measurements=measured)))
    assert back.measurements is not None
    assert str(back.measurements.quality["accuracy"]) == "nan"
    assert back.measurements.train_s == float("inf")
    campaign.close()


def test_memory_that_does_not_come_back_is_noticed_after_the_first_trial() -> None:
    class Process:
        def __init__(self, *held: int) -> None:
            self._held = list(held)

        def memory_info(self) -> Process:
            self.rss = self._held.pop(0)
            return self

    base = 3 << 30
    watch = MemoryWatch(Process(base, base + GROWTH_BYTES // 2, base, base + GROWTH_BYTES + 1))  # type: ignore[arg-type]
    assert [watch.grew() for _ in range(4)] == [False, False, False, True]
