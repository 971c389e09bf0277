"""What every store promises. A test class that inherits `StoreContract` and has a `url` fixture checks one kind."""

import math
import subprocess
import sys
import threading
import time

import pytest

from autopeft.domain.budget import Budget
from autopeft.domain.errors import TakenTrialError, UserError
from autopeft.domain.measurements import Measurements
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus
from autopeft.store import open_store
from tests.contract.run_samples import candidate_of, complete, measurements_of, proposal_of, record_of
from tests.contract.session_contract import ROOT, SessionContract


class StoreContract(SessionContract):
    """Inherit it and define the fixture `url`: the URL of an empty database."""

    # Runs

    def test_a_run_comes_back_as_it_was_made(self, store, url):
        record = record_of(max_memory="12GiB", seed=3, objectives=["accuracy", "train_peak_bytes"])
        store.create(record)
        other = open_store(url)
        assert other.open("a-run").record == record
        assert other.open("a-run").record.spec.digest == record.spec.digest
        other.close()

    def test_runs_are_listed_oldest_first(self, store):
        assert store.names() == []
        for name, created_at in (("b", 20.0), ("a", 10.0), ("c", 30.0)):
            store.create(record_of(name, created_at=created_at))
        assert store.names() == ["a", "b", "c"]

    def test_an_unknown_run_is_none(self, store):
        assert store.open("nobody") is None

    def test_a_name_is_taken_once(self, store):
        store.create(record_of())
        with pytest.raises(UserError, match="has a run 'a-run' already"):
            store.create(record_of())
        assert store.names() == ["a-run"]

    def test_runs_do_not_see_each_other_s_trials(self, store):
        one, two = store.create(record_of("one")), store.create(record_of("two"))
        for run in (one, two):
            run.open_session()
            assert run.add(proposal_of(0), 1).number == 0
        assert len(one.trials()) == len(two.trials()) == 1
        one.start(0, "w")
        assert [trial.status for trial in two.trials()] == [TrialStatus.PENDING]

    # Budget and what was spent

    def test_the_budget_starts_as_the_spec_s_and_can_be_replaced(self, store):
        run = store.create(record_of(budget="40"))
        assert run.budget() == Budget(trials=40)
        run.set_budget(Budget.parse("2h,8gpu-h"))
        assert store.open("a-run").budget() == Budget(seconds=7200, gpu_seconds=8 * 3600)

    def test_failures_are_charged_like_successes(self, run):
        ends = [complete(seconds=2.0), Outcome(status=TrialStatus.CRASHED, seconds=3.0)]
        for index, outcome in enumerate(ends):
            run.add(proposal_of(index), 1)
            run.start(index, "w")
            run.finish(index, 1, outcome, 0.5)
        run.add(proposal_of(2), 1)
        run.start(2, "w")
        run.release(2, 1, TrialStatus.PENDING, 4.0, 0.5)
        spent = run.spent()
        assert spent.trials == 2
        assert spent.gpu_seconds == pytest.approx((2 + 3 + 4) * 0.5)
        assert run.trials()[2].seconds == pytest.approx(4.0)

    def test_wall_seconds_add_up_over_sessions_and_stand_still_between_them(self, run):
        time.sleep(0.1)
        first = run.spent().seconds
        assert first >= 0.1
        run.close_session()
        closed = run.spent().seconds
        time.sleep(0.1)
        assert run.spent().seconds == closed
        run.open_session()
        time.sleep(0.05)
        assert run.spent().seconds >= closed + 0.05

    # Trials

    def test_numbers_count_from_zero(self, run):
        added = [run.add(proposal_of(index), 1) for index in range(5)]
        assert [trial.number for trial in added] == [0, 1, 2, 3, 4]
        assert run.trials() == added
        assert {trial.status for trial in added} == {TrialStatus.PENDING}
        assert {trial.attempt for trial in added} == {0}

    def test_a_candidate_is_trained_once_per_seed(self, run):
        run.add(proposal_of(0), 1)
        with pytest.raises(TakenTrialError, match="trial 0"):
            run.add(proposal_of(0), 1)
        assert run.add(proposal_of(0), 2).number == 1
        assert run.add(proposal_of(1), 1).number == 2

    def test_a_refused_trial_is_kept_and_costs_nothing(self, run):
        run.add(proposal_of(0), 1)
        failure = Failure(reason=FailureReason.PREDICTED_OVER_LIMIT, text="too large", violation=0.25)
        outcome = Outcome(status=TrialStatus.INFEASIBLE, failure=failure, measurements=measurements_of())
        refused = run.refuse(proposal_of(1), 1, outcome)
        assert run.trials()[1] == refused
        assert (refused.number, refused.status, refused.attempt) == (1, TrialStatus.INFEASIBLE, 0)
        assert (refused.failure, refused.measurements) == (failure, measurements_of())
        assert refused.refused
        assert refused.started_at is None
        assert refused.finished_at is not None
        assert run.spent().trials == 0
        assert run.spent().gpu_seconds == 0
        with pytest.raises(ValueError):
            run.start(1, "w")
        with pytest.raises(TakenTrialError):
            run.refuse(proposal_of(1), 1, outcome)
        with pytest.raises(ValueError):
            run.refuse(proposal_of(2), 1, Outcome(status=TrialStatus.PENDING))
        assert len(run.trials()) == 2

    def test_threads_that_add_at_once_get_different_numbers(self, run):
        refused = []

        def add(offset):
            for index in range(10):
                try:
                    run.add(proposal_of(offset + index), 1)
                except Exception as error:
                    refused.append(error)

        threads = [threading.Thread(target=add, args=(offset,)) for offset in (0, 10, 20, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused == []
        assert [trial.number for trial in run.trials()] == list(range(40))
        assert len({trial.digest for trial in run.trials()}) == 40

    def test_processes_that_write_different_runs_at_once_do_not_disturb_each_other(self, url, store):
        for name in ("one", "two"):
            store.create(record_of(name))
        command = [sys.executable, "-m", "tests.contract.session_owner", url]
        both = [subprocess.Popen([*command, name, "25", "--then-leave"], cwd=ROOT) for name in ("one", "two")]
        assert [process.wait(60) for process in both] == [0, 0]
        for name in ("one", "two"):
            assert [trial.number for trial in store.open(name).trials()] == list(range(26))

    def test_every_field_of_a_trial_comes_back(self, run):
        added = run.add(proposal_of(3), 11)
        assert (added.candidate, added.seed) == (candidate_of(3), 11)
        assert added.parameters == proposal_of(3).parameters
        assert list(added.parameters) == list(proposal_of(3).parameters), "their order is the space's"
        assert type(added.parameters["use_bias"]) is bool
        assert added.sampler_state == {"index": 3}
        started = run.start(0, "worker-7")
        assert (started.status, started.attempt, started.worker) == (TrialStatus.RUNNING, 1, "worker-7")
        assert added.created_at <= started.started_at <= time.time()
        failure = Failure(reason=FailureReason.OVER_LIMIT, text="Too big.", detail="…", violation=0.25)
        measured = measurements_of()
        unset = [name for name in Measurements.model_fields if name not in measured.model_fields_set]
        assert unset == [], "the sample fills every field"
        outcome = Outcome(status=TrialStatus.INFEASIBLE, measurements=measured, failure=failure, seconds=2.5)
        ended = run.finish(0, 1, outcome, 2.0)
        assert (ended.status, ended.measurements, ended.failure) == (TrialStatus.INFEASIBLE, measured, failure)
        assert (ended.seconds, ended.gpu_seconds) == (2.5, 5.0)
        assert started.started_at <= ended.finished_at <= time.time()
        tested = run.record_test(0, {"accuracy": 0.5})
        assert tested == ended.model_copy(update={"test_quality": {"accuracy": 0.5}})
        assert run.trials() == [tested]

    @pytest.mark.parametrize("status", [status for status in TrialStatus if status.ended])
    def test_every_end_is_kept(self, run, status):
        run.add(proposal_of(0), 1)
        run.start(0, "w")
        run.finish(0, 1, Outcome(status=status), 0)
        assert run.trials()[0].status is status
        assert run.spent().trials == 1

    def test_pending_and_running_are_no_end(self, run):
        run.add(proposal_of(0), 1)
        run.start(0, "w")
        for status in (TrialStatus.PENDING, TrialStatus.RUNNING):
            with pytest.raises(ValueError, match="cannot end"):
                run.finish(0, 1, Outcome(status=status), 0)
        with pytest.raises(ValueError, match="cannot be put back"):
            run.release(0, 1, TrialStatus.COMPLETE, 0, 0)
        assert run.trials()[0].status is TrialStatus.RUNNING

    def test_only_a_pending_trial_can_be_started(self, run):
        run.add(proposal_of(0), 1)
        run.start(0, "w")
        with pytest.raises(ValueError, match="it is running"):
            run.start(0, "w")
        with pytest.raises(ValueError, match="there is none"):
            run.start(1, "w")

    def test_a_stopped_trial_is_put_back_with_what_it_measured_and_its_time_is_added(self, run):
        run.add(proposal_of(0), 1)
        run.start(0, "w")
        with pytest.raises(ValueError, match="it is running"):
            run.reopen(0)
        stopped = Outcome(status=TrialStatus.STOPPED_EARLY, measurements=measurements_of(), seconds=2.0)
        ended = run.finish(0, 1, stopped, 1.0)
        assert run.spent().trials == 1
        reopened = run.reopen(0)
        put_back = {"status": TrialStatus.PENDING, "finished_at": None}
        assert reopened == ended.model_copy(update=put_back)
        assert run.spent().trials == 0
        started = run.start(0, "v")
        assert (started.attempt, started.measurements) == (2, measurements_of()), (
            "should it be killed, its rungs are known"
        )
        done = run.finish(0, 2, complete(0.9), 1.0)
        assert (done.status, done.seconds, done.gpu_seconds) == (
            TrialStatus.COMPLETE,
            2.0 + complete(0.9).seconds,
            ended.gpu_seconds + complete(0.9).seconds,
        )
        with pytest.raises(ValueError, match="it is complete"):
            run.reopen(0)

    def test_a_late_result_changes_nothing(self, run):
        run.add(proposal_of(0), 1)
        run.start(0, "w0")
        run.release(0, 1, TrialStatus.LOST, 1.0, 1.0)
        assert run.finish(0, 1, complete(), 1.0) is None, "the trial waits for its next attempt"
        run.start(0, "w1")
        assert run.finish(0, 1, complete(), 1.0) is None, "another attempt runs"
        assert run.release(0, 1, TrialStatus.LOST, 1.0, 1.0) is None
        done = run.finish(0, 2, complete(0.9), 1.0)
        assert run.finish(0, 2, complete(0.1), 1.0) is None, "it ended already"
        assert run.trials() == [done]
        assert done.measurements.quality["accuracy"] == 0.9

    def test_writing_without_a_session_is_refused(self, store):
        run = store.create(record_of())
        with pytest.raises(RuntimeError, match="open_session"):
            run.add(proposal_of(0), 1)
        with pytest.raises(RuntimeError, match="open_session"):
            run.start(0, "w")

    def test_test_scores_of_an_unknown_trial_are_refused(self, run):
        with pytest.raises(KeyError):
            run.record_test(5, {"accuracy": 1.0})

    # Losses

    def test_a_trial_whose_worker_died_is_retried_until_its_retries_are_used_up(self, store):
        run = store.create(record_of(retries=2))
        run.open_session()
        run.add(proposal_of(0), 1)
        for attempt in (1, 2, 3):
            assert run.start(0, "w").attempt == attempt
            last = run.release(0, attempt, TrialStatus.LOST, 1.0, 0.0)
            assert last.failure.reason is FailureReason.WORKER_DIED
            assert last.status is (TrialStatus.PENDING if attempt < 3 else TrialStatus.LOST)
        assert last.seconds == pytest.approx(3.0)
        assert run.spent().trials == 1

    def test_an_interrupted_trial_is_pending_again_and_loses_no_retry(self, store):
        run = store.create(record_of(retries=0))
        run.open_session()
        run.add(proposal_of(0), 1)
        for attempt in range(1, 6):
            run.start(0, "w")
            back = run.release(0, attempt, TrialStatus.PENDING, 0.5, 0.0)
            assert (back.status, back.failure) == (TrialStatus.PENDING, None)

    # Texts and numbers that are hard to keep

    def test_nan_and_infinity_survive(self, run):
        run.add(proposal_of(0), 1)
        run.start(0, "w")
        outcome = complete(math.nan, first_losses=(math.inf, -math.inf, math.nan, 1.5), train_s=math.inf)
        ended = run.finish(0, 1, outcome, 0)
        for trial in (ended, run.trials()[0]):
            measured = trial.measurements
            assert math.isnan(measured.quality["accuracy"])
            assert math.isnan(measured.rungs[0].quality["f1"])
            assert measured.first_losses[:2] == (math.inf, -math.inf)
            assert math.isnan(measured.first_losses[2])
            assert (measured.first_losses[3], measured.train_s) == (1.5, math.inf)
        assert math.isnan(run.record_test(0, {"accuracy": math.nan}).test_quality["accuracy"])

    @pytest.mark.parametrize("value", [0.1 + 0.2, 1e-308, 5e-324, 1.7976931348623157e308, -0.0, 2.0**53 + 2])
    def test_floats_come_back_bit_for_bit(self, run, value):
        run.add(proposal_of(0), 1)
        run.start(0, "w")
        run.finish(0, 1, complete(train_s=value), 0)
        assert math.copysign(1, run.trials()[0].measurements.train_s) == math.copysign(1, value)
        assert run.trials()[0].measurements.train_s == value

    @pytest.mark.parametrize(
        "text", ["", "'\"; DROP TABLE autopeft_trials; --", "Ünïcode 日本語 🦆", "a\0b", "\x1b[31m", "100%(x)s :y ?"]
    )
    def test_any_text_survives(self, run, text):
        run.add(proposal_of(0), 1)
        run.start(0, f"worker {text}")
        failure = Failure(reason=FailureReason.EXCEPTION, text=text, detail=text * 3)
        run.finish(0, 1, Outcome(status=TrialStatus.CRASHED, failure=failure), 0)
        assert run.trials()[0].failure == failure

    def test_large_records_survive(self, run):
        run.add(proposal_of(0), 1)
        run.start(0, "w")
        modules = tuple(f"model.layers.{index}.self_attn.query_projection" for index in range(20_000))
        run.finish(0, 1, complete(inserted_modules=modules, train_tokens=2**62), 0)
        measured = run.trials()[0].measurements
        assert (measured.inserted_modules, measured.train_tokens) == (modules, 2**62)

    # Opening

    def test_a_newer_database_is_refused(self, store, url):
        with store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE autopeft_schema SET version = 99")
        with pytest.raises(UserError, match="newer AutoPEFT"):
            open_store(url)

    def test_processes_that_open_an_empty_database_at_once_all_succeed(self, url):
        command = [sys.executable, "-c", f"from autopeft.store import open_store; open_store({url!r}).close()"]
        opening = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
        assert [process.wait(60) for process in opening] == [0] * 3
