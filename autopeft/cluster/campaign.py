"""The search loop that every runner drives: what to train next, and what to do with how it ended.

All trials of a run train with the run's own seed, so that two candidates differ by what they are and not by the draw
of batches and initial weights; repetitions of a candidate have other ones.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autopeft.cluster.adapters import MOST_CHECKPOINTS, KeptAdapters
from autopeft.cluster.admission import Admission
from autopeft.cluster.fronts import GrowingFront
from autopeft.cluster.heartbeat import Heartbeat
from autopeft.cluster.running import Running
from autopeft.cluster.stopping import EarlyStopping
from autopeft.cluster.verdict import FailureRate, Refusals, judged, with_fields
from autopeft.domain.budget import Budget, Spent
from autopeft.domain.events import (
    Notice,
    OnEvent,
    RungReached,
    RunOpened,
    TrialEnded,
    TrialRefused,
    TrialStarted,
    TrialTakenUp,
    ignore,
)
from autopeft.domain.measurements import Rung, TakenUp
from autopeft.domain.objective import Objective
from autopeft.domain.ports import EvaluationTask, Proposal, Resources, RunStore, Sampler
from autopeft.domain.results import Front, ScoredTrial, score
from autopeft.domain.trial import Failure, FailureReason, Outcome, Trial, TrialStatus


@dataclass(frozen=True)
class Wait:
    """Nothing can start now; something may, once a running trial ends."""


@dataclass(frozen=True)
class Refused:
    """A candidate was refused for what is predicted of it; ask again."""


@dataclass(frozen=True)
class Done:
    """Nothing more will start, and nothing is running."""

    why: str
    """One sentence."""


@dataclass(frozen=True)
class RunEnd:
    """How a runner's work ended."""

    why: str
    """One sentence."""
    interrupted: bool


class Campaign:
    """One session of a search: asks the sampler, writes the store, keeps the budget and the front.

    A runner calls `open`, then `next` until it says `Done`, hands in `taken_up`, `rung`, `finish` and `lost`, and at
    the end calls `close`. Everything but the heartbeat happens in the thread that calls; the store is used by one
    thread at a time.
    """

    def __init__(
        self,
        store: RunStore,
        sampler: Sampler,
        objectives: Sequence[Objective],
        *,
        artefacts: Path,
        resources: Resources,
        seed: int,
        max_failure_share: float = 0.5,
        keep_adapters: str = "front",
        budget: Budget | None = None,
        admission: Admission | None = None,
        stopping: EarlyStopping | None = None,
        on_event: OnEvent = ignore,
    ) -> None:
        """A session on `store`, not yet open.

        Args:
            budget: Replaces the stored one once the run is this process's own; `None` keeps the stored one.
            admission: Foretells and refuses candidates; `None` foretells nothing.
            stopping: Decides at rungs; `None` trains every trial to its end.
        """
        self._store = store
        self._sampler = sampler
        self._objectives = tuple(objectives)
        self._artefacts = artefacts
        self._resources = resources
        self._seed = seed
        self._on_event = on_event
        self._lock = threading.Lock()
        self._heartbeat = Heartbeat(self._beat)
        self._failures = FailureRate(max_failure_share)
        self._admission = admission or Admission()
        self._refusals = Refusals()
        self._stopping = stopping
        self._adapters = KeptAdapters(artefacts, keep_adapters == "all", stopping is not None and stopping.promotes)
        self._pending: deque[Trial] = deque()
        self._running: dict[int, Running] = {}
        self._new_budget = budget
        self._budget = budget or store.budget()
        self._spent = Spent()
        self._spent_at = 0.0
        self._rows = 0
        self._ended = 0
        self._exhausted = False
        self._fronts = GrowingFront(self._objectives, store.record.spec.repeat_share > 0)

    @property
    def front(self) -> Front:
        """The front of everything that ended so far."""
        return self._fronts.front

    @property
    def running(self) -> tuple[EvaluationTask, ...]:
        """Tasks handed out and not yet ended."""
        return tuple(one.task for one in self._running.values())

    def open(self) -> None:
        """Take the run for this process, show the sampler what is stored, queue what earlier sessions left.

        Raises:
            RunBusyError: where another live process has the run.
        """
        with self._lock:
            lost = self._store.open_session()
        try:
            if self._new_budget is not None:
                # Not before: where another process has the run, its budget stays as it is.
                with self._lock:
                    self._store.set_budget(self._new_budget)
            self._heartbeat.start()
            self._go_on(len(lost))
        except BaseException:
            self.close()
            raise

    def done(self) -> Done | None:
        """Why nothing more would start, where that is known without asking the sampler."""
        why = self._why_stop()
        return None if why is None or self._running or self._wanted() is not None else self._over(why)

    def next(self, worker: str = "") -> EvaluationTask | Refused | Wait | Done:
        """What to train now. The trial's row is `running` in the store before this returns.

        Trials left by earlier sessions come first, those that saw a driver die behind the others, then lost ones, then
        stopped ones that are wanted after all (no new trial, so that a budget of trials does not end them), then the
        sampler's proposals. A proposal that is predicted not to fit becomes an infeasible trial at once.

        Args:
            worker: Name of the worker that will get the task, for the table.
        """
        self._heartbeat.check()
        why = self._why_stop()
        if why is None and self._pending:
            return self._start(self._pending.popleft(), worker)
        if (number := self._wanted()) is not None:
            return self._start(self._reopened(number), worker, again=True)
        if why is None:
            proposal = None if self._exhausted else self._sampler.ask(self._rows)
            if proposal is not None:
                return self._proposed(proposal, worker)
            self._exhausted = True
            why = f"Every candidate of the space was proposed{self._refusals.aside()}."
        return Wait() if self._running else self._over(why)

    def taken_up(self, number: int, attempt: int, taken_up: TakenUp) -> None:
        """Pass on where a trial goes on that an earlier attempt began."""
        if self._is_current(number, attempt):
            self._running[number].told.append(taken_up.problem)
            self._on_event(TrialTakenUp(number, taken_up))

    def rung(self, number: int, attempt: int, rung: Rung) -> bool:
        """Pass on what a running trial reported part-way, and say whether it trains on.

        Reports of an earlier attempt are ignored.
        """
        if not self._is_current(number, attempt):
            return True
        self._on_event(RungReached(number, rung))
        # A repetition is trained to its end: what is known only of those that did well would be no mean.
        repeats = self._running[number].task.seed != self._seed
        return repeats or self._stopping is None or self._stopping.goes_on(number, rung)

    def stopped(self, task: EvaluationTask) -> None:
        """Record that a trial was ended at the rung at which `rung` said so, with what its rungs told."""
        if self._stopping is not None and self._is_current(task.number, task.attempt):
            measurements = self._stopping.stopped(task.number)
            seconds = time.monotonic() - self._running[task.number].since
            self.finish(task, Outcome(status=TrialStatus.STOPPED_EARLY, measurements=measurements, seconds=seconds))

    def finish(self, task: EvaluationTask, outcome: Outcome) -> None:
        """Record how an attempt ended: store, then sampler, then listeners. A late result changes nothing.

        A complete outcome that lacks a finite value of an objective is recorded as invalid.
        """
        if not self._is_current(task.number, task.attempt):
            return
        running = self._running[task.number]
        outcome = judged(with_fields(outcome, running.foretold), self._objectives)
        with self._lock:
            trial = self._store.finish(task.number, task.attempt, outcome, self._resources.gpus_per_worker)
        problem = outcome.measurements.checkpoint_problem if outcome.measurements is not None else ""
        if problem and problem not in running.told:
            self._on_event(Notice(f"trial {task.number}: {problem}"))
        self._ended_attempt(task, trial)

    def lost(self, task: EvaluationTask, text: str) -> None:
        """Record that a worker died over a task, with one sentence on how; retried while the retries last."""
        self._release(task, TrialStatus.LOST, text)

    def out_of_memory(self, task: EvaluationTask, text: str) -> None:
        """Record that a worker was ended for want of host memory, with one sentence on how: a result, not retried."""
        if self._is_current(task.number, task.attempt):
            failure = Failure(reason=FailureReason.OUT_OF_MEMORY, text=text)
            seconds = time.monotonic() - self._running[task.number].since
            self.finish(task, Outcome(status=TrialStatus.INFEASIBLE, failure=failure, seconds=seconds))

    def release_running(self) -> None:
        """Put everything that is running back to `pending`: the search was interrupted."""
        for task in self.running:
            self._release(task, TrialStatus.PENDING, "")

    def close(self) -> None:
        """End the session; what still runs goes back to `pending`."""
        try:
            self.release_running()
        finally:
            self._heartbeat.stop()
            with self._lock:
                self._store.close_session()

    def _go_on(self, lost: int) -> None:
        with self._lock:
            trials, self._budget = self._store.trials(), self._store.budget()
        self._read_spent()
        scored = [score(trial, self._objectives) for trial in trials]
        self._rows = len(trials)
        self._ended = sum(trial.status.ended and not trial.refused for trial in trials)
        self._refusals.replay(trials)
        self._admission.learn(trials)
        self._sampler.replay(scored)
        if self._stopping is not None:
            self._stopping.replay(trials)
        waiting = [trial for trial in trials if trial.status is TrialStatus.PENDING]
        # What ran when a driver died may have brought it down: the rest comes first and is safe when it does so again.
        self._pending.extend(sorted(waiting, key=lambda trial: (trial.driver_deaths, trial.number)))
        self._fronts.begin(scored)
        self._adapters.sweep(self._fronts.spared(trials), self.front)
        self._on_event(
            RunOpened(
                record=self._store.record,
                folder=str(self._artefacts.parent),
                budget=self._budget,
                spent=self._spent,
                resumed=bool(trials),
                done=self._ended,
                lost=lost,
                workers=self._resources.workers,
                counts=Counter(trial.status for trial in trials),
                front=self.front,
                pending=len(self._pending),
            )
        )

    def _over(self, why: str) -> Done:
        # After failures and refusals, a person changes something and goes on.
        if self._failures.exceeded() is None and self._refusals.exceeded() is None:
            self._adapters.drop_stopped()
            self._adapters.drop(self._fronts.left, self.front)
        return Done(why)

    def _wanted(self) -> int | None:
        """The stopped trial to take up again, where the budget has room for what is left of its training."""
        if self._stopping is None or self._pending or self._why_stop(again=1) is not None:
            return None
        return self._stopping.wanted(self._adapters.checkpoints)

    def _reopened(self, number: int) -> Trial:
        with self._lock:
            trial = self._store.reopen(number)
        self._ended -= 1
        self._adapters.forget(number)
        self._sampler.tell(ScoredTrial(trial, None))
        return trial

    def _why_stop(self, again: int = 0) -> str | None:
        """The sentence that says why nothing new may start, or None; `again` of the ended trials are taken back."""
        failing = self._failures.exceeded() or (None if self._pending else self._refusals.exceeded())
        if failing is not None:
            return failing
        now = time.monotonic()
        held = sum(now - one.since for one in self._running.values()) * self._resources.gpus_per_worker
        charged = Spent(
            trials=self._ended - again + len(self._running),
            seconds=self._spent.seconds + now - self._spent_at,
            gpu_seconds=self._spent.gpu_seconds + held,
        )
        kind = self._budget.used_up_by(charged)
        return None if kind is None else f"The budget of {self._budget.limit(kind)} is used up."

    def _proposed(self, proposal: Proposal, worker: str) -> EvaluationTask | Refused:
        """Write a proposal's row: of a trial that starts, or of one that is refused."""
        outcome = self._admission.refusal(proposal.candidate)
        seed = self._seed if proposal.seed is None else proposal.seed
        with self._lock:
            trial = self._store.add(proposal, seed) if outcome is None else self._store.refuse(proposal, seed, outcome)
        self._rows += 1
        self._refusals.count(trial)
        if outcome is None:
            return self._start(trial, worker)
        self._sampler.tell(ScoredTrial(trial, None))
        self._on_event(TrialRefused(trial))
        return Refused()

    def _start(self, trial: Trial, worker: str, again: bool = False) -> EvaluationTask:
        foretold = self._admission.fields(trial.candidate)
        with self._lock:
            trial = self._store.start(trial.number, worker, gpus=self._resources.gpus_per_worker)
        task = EvaluationTask(
            number=trial.number,
            attempt=trial.attempt,
            seed=trial.seed,
            candidate=trial.candidate,
            artefact_dir=str(self._adapters.folder(trial)),
        )
        self._running[trial.number] = Running(task, time.monotonic(), foretold)
        if self._stopping is not None:
            self._stopping.learn(trial)
        self._on_event(TrialStarted(trial, again))
        return task

    def _is_current(self, number: int, attempt: int) -> bool:
        running = self._running.get(number)
        return running is not None and running.task.attempt == attempt

    def _release(self, task: EvaluationTask, status: TrialStatus, text: str) -> None:
        if not self._is_current(task.number, task.attempt):
            return
        seconds = time.monotonic() - self._running[task.number].since
        with self._lock:
            trial = self._store.release(task.number, task.attempt, status, seconds, self._resources.gpus_per_worker)
        if trial is not None and text:
            # For listeners only: the row counts how often the worker died.
            failure = Failure(reason=FailureReason.WORKER_DIED, text=text)
            trial = trial.model_copy(update={"failure": failure})
        self._ended_attempt(task, trial)

    def _ended_attempt(self, task: EvaluationTask, trial: Trial | None) -> None:
        del self._running[task.number]
        if trial is None:
            return
        scored = score(trial, self._objectives)
        if self._stopping is not None:
            self._stopping.learn(trial)
        if trial.status is TrialStatus.PENDING:
            self._pending.append(trial)
        else:
            self._ended += 1
            self._failures.count(trial)
            self._admission.learn([trial])
            self._sampler.tell(scored)
            self._keep(scored)
        self._read_spent()
        self._on_event(TrialEnded(trial, scored.values, self.front, self._spent))

    def _keep(self, scored: ScoredTrial) -> None:
        left = self._fronts.add(scored)
        self._adapters.drop(left, self.front)
        if self._stopping is not None:
            least = self._stopping.least_wanted(self._adapters.checkpoints, MOST_CHECKPOINTS)
            self._adapters.drop_checkpoints(least)

    def _read_spent(self) -> None:
        with self._lock:
            self._spent = self._store.spent()
        self._spent_at = time.monotonic()

    def _beat(self) -> None:
        with self._lock:
            self._store.heartbeat()
