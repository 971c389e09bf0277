"""What every store promises about sessions: who has a run, and what becomes of it when its owner dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopeft.domain.errors import RunBusyError
from autopeft.domain.trial import FailureReason, TrialStatus
from autopeft.store import open_store, sessions
from tests.contract.run_samples import complete, proposal_of, record_of

ROOT = Path(__file__).parents[2]


class Owner:
    """Another process that opens a session, starts trials and then sits there."""

    def __init__(self, url, name, trials):
        command = [sys.executable, "-m", "tests.contract.session_owner", url, name, str(trials)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def kill(self, reap=True):
        self.process.send_signal(signal.SIGKILL)
        if reap:
            self.process.wait(20)
            self.process.stdout.close()


class SessionContract:
    """A part of `StoreContract`."""

    @pytest.fixture
    def store(self, url):
        store = open_store(url)
        yield store
        store.close()

    @pytest.fixture
    def run(self, store):
        run = store.create(record_of())
        run.open_session()
        return run

    @pytest.fixture
    def owned(self, url, store):
        """A run that another live process works on, with two running trials and one pending."""
        store.create(record_of())
        owner = Owner(url, "a-run", 2)
        yield owner
        if owner.process.poll() is None:
            owner.kill()

    def test_a_run_with_a_live_owner_is_busy(self, owned, store):
        with pytest.raises(RunBusyError) as busy:
            store.open("a-run").open_session()
        assert str(owned.process.pid) in str(busy.value)
        assert os.uname().nodename in str(busy.value)
        assert len(store.open("a-run").trials()) == 3, "reading is always possible"

    def test_the_same_process_cannot_take_a_run_twice(self, run, store):
        with pytest.raises(RunBusyError, match=str(os.getpid())):
            store.open("a-run").open_session()
        run.close_session()
        assert store.open("a-run").open_session() == []

    @pytest.mark.parametrize("reap", [True, False], ids=["gone", "zombie"])
    def test_a_killed_owner_is_taken_over_at_once(self, owned, store, reap):
        owned.kill(reap)
        run = store.open("a-run")
        deadline = time.monotonic() + 20
        while True:
            try:
                back = run.open_session()
                break
            except RunBusyError:
                # The kernel takes a moment to end a killed process.
                assert time.monotonic() < deadline
                time.sleep(0.02)
        owned.kill()
        assert [(trial.number, trial.status) for trial in back] == [(0, TrialStatus.PENDING), (1, TrialStatus.PENDING)]
        assert {trial.failure.reason for trial in back} == {FailureReason.DRIVER_DIED}
        assert all(trial.seconds > 0 for trial in back), "the attempt is charged up to the last heartbeat"
        assert [trial.status for trial in run.trials()] == [TrialStatus.PENDING] * 3
        again = run.start(0, "w")
        assert (again.attempt, again.failure) == (2, None)
        assert run.finish(0, 2, complete(), 0).status is TrialStatus.COMPLETE

    def test_the_budget_s_clock_survives_a_kill(self, owned, store):
        run = store.open("a-run")
        time.sleep(0.7)
        before = run.spent().seconds
        assert before > 0.4
        owned.kill()
        after = run.spent().seconds
        assert before <= after < before + 1.5
        run.open_session()
        assert run.spent().seconds >= after

    def test_a_killed_driver_costs_a_trial_no_retry(self, store, monkeypatch):
        run = store.create(record_of(retries=1))
        run.open_session()
        run.add(proposal_of(0), 1)
        monkeypatch.setattr(sessions, "_lives", lambda owner: False)
        for kill in range(5):
            assert run.start(0, "w").attempt == kill + 1
            run = store.open("a-run")
            assert [trial.status for trial in run.open_session()] == [TrialStatus.PENDING]
        run.start(0, "w")
        assert run.release(0, 6, TrialStatus.LOST, 0, 0).status is TrialStatus.PENDING
        run.start(0, "w")
        assert run.release(0, 7, TrialStatus.LOST, 0, 0).status is TrialStatus.LOST

    def test_a_trial_that_ran_at_ten_deaths_of_its_driver_is_given_up(self, store, monkeypatch):
        run = store.create(record_of(retries=0))
        run.open_session()
        for index in (0, 1):
            run.add(proposal_of(index), 1)
        monkeypatch.setattr(sessions, "_lives", lambda owner: False)
        for death in range(1, 11):
            run.start(0, "w")
            run = store.open("a-run")
            (trial,) = run.open_session()
            assert trial.driver_deaths == death
            assert trial.status is (TrialStatus.PENDING if death < 10 else TrialStatus.LOST)
            assert trial.failure.reason is FailureReason.DRIVER_DIED
        assert "10 times" in trial.failure.text
        assert trial.finished_at is not None
        assert run.trials()[1].driver_deaths == 0
        assert run.spent().trials == 1

    def test_the_gpus_of_a_trial_are_charged_where_its_driver_died(self, store, monkeypatch):
        run = store.create(record_of())
        run.open_session()
        for index, gpus in enumerate((2.0, 0.5, 0.0)):
            run.add(proposal_of(index), 1)
            run.start(index, "w", gpus=gpus)
        time.sleep(0.5)
        run.heartbeat()
        monkeypatch.setattr(sessions, "_lives", lambda owner: False)
        back = store.open("a-run").open_session()
        assert [round(trial.gpu_seconds / trial.seconds, 6) for trial in back] == [2.0, 0.5, 0.0]
        assert run.spent().gpu_seconds == pytest.approx(sum(trial.gpu_seconds for trial in back))
        assert back[0].seconds > 0.4

    def test_an_owner_on_another_machine_keeps_its_run_until_the_lease_ends(self, store, url, monkeypatch):
        far = open_store(url)
        store.create(record_of())
        with monkeypatch.context() as there:
            there.setattr(sessions, "machine", lambda: "elsewhere")
            distant = far.open("a-run")
            distant.open_session()
            distant.add(proposal_of(0), 1)
            distant.start(0, "w")
        run = store.open("a-run")
        with pytest.raises(RunBusyError):
            run.open_session()
        monkeypatch.setattr(sessions, "LEASE_S", 0.6)
        time.sleep(0.5)
        distant.heartbeat()
        time.sleep(0.3)
        with pytest.raises(RunBusyError):
            run.open_session()
        time.sleep(0.5)
        assert [trial.number for trial in run.open_session()] == [0]
        # What it still tries comes too late.
        with pytest.raises(RunBusyError, match="took this run over"):
            distant.heartbeat()
        with pytest.raises(RunBusyError):
            distant.add(proposal_of(1), 1)
        with pytest.raises(RunBusyError):
            distant.start(0, "w")
        assert distant.finish(0, 1, complete(), 0) is None
        distant.close_session()
        run.heartbeat()
        assert run.add(proposal_of(1), 1).number == 1, "the new owner's session is untouched"
        far.close()

    def test_closing_the_store_gives_its_runs_back(self, store, url):
        store.create(record_of())
        other = open_store(url)
        other.open("a-run").open_session()
        other.close()
        assert store.open("a-run").open_session() == []
