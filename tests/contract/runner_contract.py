"""What every runner promises; a test class per runner inherits it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.stopping import EarlyStopping
from autopeft.domain.errors import UserError
from autopeft.domain.events import Event, RungReached, TrialEnded, TrialStarted, TrialTakenUp
from autopeft.domain.measurements import Measurements
from autopeft.domain.ports import EvaluationTask, EvaluatorRef, RunStore
from autopeft.domain.stopping import Standing
from autopeft.domain.trial import FailureReason, Trial, TrialStatus
from autopeft.store import open_store
from tests.fakes.evaluators import known_measurements
from tests.fakes.searches import ToySampler, toy_campaign, toy_objectives, toy_record

ROOT = Path(__file__).parents[2]
RUNGS = 2

FAULTS = {
    "1": "nan",
    "2": "inf",
    "3": "missing",
    "4": "missing:train_peak_bytes",
    "5": "raise",
    "6": "oom",
    "7": "no-outcome",
    "8": "recycle",
}
ENDS: dict[int, tuple[TrialStatus, FailureReason | None]] = {
    1: (TrialStatus.INVALID, FailureReason.NOT_FINITE),
    2: (TrialStatus.INVALID, FailureReason.NOT_FINITE),
    3: (TrialStatus.INVALID, FailureReason.MISSING_METRIC),
    4: (TrialStatus.INVALID, FailureReason.MISSING_METRIC),
    5: (TrialStatus.CRASHED, FailureReason.EXCEPTION),
    6: (TrialStatus.INFEASIBLE, FailureReason.OUT_OF_MEMORY),
    7: (TrialStatus.CRASHED, FailureReason.EXCEPTION),
}


class Program:
    """`tests.fakes.run_search`, or another module, in a process of its own."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str] | None = None,
        module: str = "tests.fakes.run_search",
        **asked: Any,
    ) -> None:
        command = [sys.executable, "-m", module, str(folder), json.dumps(asked)]
        # A group of its own, so that a signal can be sent as a terminal sends it.
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def wait_for(self, start: str) -> str:
        """The first new line that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(start):
                return line
        raise AssertionError(f"the program ended without '{start}':\n" + "\n".join(self.lines))

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: every process of the group gets it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, timeout: float = 60) -> int:
        """Exit code; what it printed is in `lines`."""
        rest, _ = self.process.communicate(timeout=timeout)
        self.lines += rest.splitlines()
        return self.process.returncode


def stored(folder: Path) -> list[Trial]:
    """The trial table that a program wrote."""
    store = open_store(f"sqlite:///{folder / 'trials.sqlite'}")
    run = store.open("toy")
    trials = [] if run is None else run.trials()
    store.close()
    return trials


class Odd:
    """Stops trials of odd numbers at their second rung."""

    promotes = True

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        for one in (trial, *others):
            assert one.parameters == ToySampler().ask(one.number).parameters
        return len(trial.losses) < 2 or trial.number % 2 == 0

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        return {}


class Later(Odd):
    """The same, and takes the first of them up again once three trials are complete."""

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        return sum(one.complete for one in others) >= 3 or super().goes_on(trial, others)

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        away = 0.0 if sum(one.complete for one in standings) >= 3 else 1.0
        return {one.number: away + (one.number > 1) for one in standings if one.stopped}


class RunnerContract(ABC):
    """Set `name` to the runner's name in `tests.fakes.run_search`."""

    name: str
    workers = 1
    faults = FAULTS
    ends = ENDS
    log_repeats: frozenset[int] = frozenset()
    """Trials that a fault makes start more than once."""

    @abstractmethod
    def run(self, reference: EvaluatorRef, campaign: Campaign) -> RunEnd: ...

    def search(
        self,
        folder: Path,
        trials: int,
        target: str = "build",
        stopping: EarlyStopping | None = None,
        **arguments: Any,
    ) -> tuple[RunEnd, list[Trial], list[Event]]:
        store = open_store(f"sqlite:///{folder / 'trials.sqlite'}")
        run: RunStore = store.create(toy_record(budget=str(trials)))
        events: list[Event] = []
        campaign = toy_campaign(run, folder, workers=self.workers, on_event=events.append, stopping=stopping)
        reference = EvaluatorRef(target=f"tests.fakes.evaluators:{target}", arguments=arguments)
        try:
            return self.run(reference, campaign), run.trials(), events
        finally:
            store.close()

    def test_every_trial_runs_once_and_faults_do_not_stop_the_search(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        end, trials, events = self.search(tmp_path, 14, faults=self.faults, rungs=RUNGS, log=str(log))
        assert end == RunEnd("The budget of 14 trials is used up.", interrupted=False)
        assert [trial.number for trial in trials] == list(range(14))
        assert len({trial.digest for trial in trials}) == 14

        for trial in trials:
            expected, reason = self.ends.get(trial.number, (TrialStatus.COMPLETE, None))
            assert trial.status is expected, trial
            assert (trial.failure.reason if trial.failure else None) is reason
            if expected is TrialStatus.COMPLETE:
                assert trial.measurements is not None
                assert without_rungs(trial.measurements) == known_measurements(task_of(trial))
                assert len(trial.measurements.rungs) == RUNGS

        began = Counter(int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("began"))
        assert set(began) == set(range(14))
        assert {number for number, times in began.items() if times > 1} == set(self.log_repeats)

        # Rungs are told while the trial runs, and ends after the row is written.
        for number in set(range(14)) - self.log_repeats:
            mine = [event for event in events if about(event) == number]
            assert [type(event) for event in mine] == [TrialStarted, *[RungReached] * RUNGS, TrialEnded]

        built = [line for line in log.read_text().splitlines() if line.startswith("built")]
        # After an out-of-memory, a raise, a missing outcome and a wish for it, each worker builds its evaluator anew.
        assert len(built) >= self.workers + 3

    def test_trials_are_stopped_at_the_rung_at_which_the_rule_says_so(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        stopping = EarlyStopping(toy_objectives(), (0.3, 0.6, 1.0), Odd())
        end, trials, _ = self.search(tmp_path, 6, stopping=stopping, rungs=3, log=str(log))
        assert end == RunEnd("The budget of 6 trials is used up.", interrupted=False)
        for trial in trials:
            assert trial.measurements is not None
            whole = known_measurements(task_of(trial))
            if trial.number % 2:
                assert trial.status is TrialStatus.STOPPED_EARLY
                assert [rung.step for rung in trial.measurements.rungs] == [3, 6]
                assert trial.measurements.quality == {"accuracy": pytest.approx(whole.quality["accuracy"] * 2 / 3)}
                assert trial.measurements.train_peak == whole.train_peak
            else:
                assert trial.status is TrialStatus.COMPLETE
                assert len(trial.measurements.rungs) == 3
        ended = [line for line in log.read_text().splitlines() if line.startswith("ended")]
        assert len(ended) == 3, "what is stopped trains no further"

    def test_a_stopped_trial_that_is_wanted_after_all_trains_on_from_its_rung(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        stopping = EarlyStopping(toy_objectives(), (0.3, 0.6, 1.0), Later())
        end, trials, events = self.search(tmp_path, 8, stopping=stopping, rungs=3, log=str(log))
        assert end == RunEnd("The budget of 8 trials is used up.", interrupted=False)
        again = trials[1]
        assert (again.status, again.attempt) == (TrialStatus.COMPLETE, 2)
        assert again.measurements is not None
        assert [rung.step for rung in again.measurements.rungs] == [3, 6, 10]
        assert again.measurements.quality == known_measurements(task_of(again)).quality
        mine = [event for event in events if about(event) == 1]
        assert [type(event) for event in mine] == [
            *(TrialStarted, RungReached, RungReached, TrialEnded),
            *(TrialStarted, TrialTakenUp, RungReached, TrialEnded),
        ]
        assert [event.again for event in mine if isinstance(event, TrialStarted)] == [False, True]
        stops = [event.trial.seconds for event in mine if isinstance(event, TrialEnded)]
        assert stops[1] > stops[0], "the time is added"
        assert 1 in {event.trial.number for event in events if isinstance(event, TrialEnded) and event.values}

    def test_an_evaluator_that_cannot_be_built_ends_the_search_with_its_problem(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="Name one"):
            self.search(tmp_path, 3, target="build_never")
        assert {trial.status for trial in stored(tmp_path)} <= {TrialStatus.PENDING}

    def test_one_ctrl_c_puts_running_trials_back_and_the_same_command_goes_on(self, tmp_path: Path) -> None:
        asked = {"runner": self.name, "trials": 4, "workers": self.workers}
        slow = {"faults": {"1": "sleep:600"}, "rungs": 1}
        program = Program(tmp_path, **asked, evaluator=slow)
        program.wait_for("ended 0")
        time.sleep(0.5)
        began = time.monotonic()
        program.interrupt()
        assert program.end() == 130, program.lines
        assert time.monotonic() - began < 10
        assert any(line.startswith("end True Interrupted") for line in program.lines)
        assert stored(tmp_path)[1].status is TrialStatus.PENDING

        again = Program(tmp_path, **asked, evaluator={})
        assert again.end() == 0, again.lines
        trials = stored(tmp_path)
        assert [trial.status for trial in trials] == [TrialStatus.COMPLETE] * 4
        assert trials[1].attempt == 2

    def test_ctrl_c_twice_ends_at_once_and_loses_nothing_that_ended(self, tmp_path: Path) -> None:
        asked = {"runner": self.name, "trials": 3, "workers": self.workers}
        program = Program(tmp_path, **asked, evaluator={"faults": {"1": "stubborn"}})
        program.wait_for("ended 0")
        time.sleep(0.2)
        began = time.monotonic()
        program.interrupt()
        time.sleep(0.1)
        program.interrupt()
        assert program.end() == 130, program.lines
        assert time.monotonic() - began < 2
        assert stored(tmp_path)[0].status is TrialStatus.COMPLETE


def task_of(trial: Trial) -> EvaluationTask:
    return EvaluationTask(number=trial.number, attempt=1, seed=0, candidate=trial.candidate, artefact_dir="")


def without_rungs(measurements: Measurements) -> Measurements:
    return measurements.model_copy(update={"rungs": ()})


def about(event: Event) -> int | None:
    match event:
        case TrialStarted() | TrialEnded():
            return event.trial.number
        case RungReached() | TrialTakenUp():
            return event.number
        case _:
            return None
