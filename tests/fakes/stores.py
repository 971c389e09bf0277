"""The trial table of one run, in memory: what a campaign needs of a store and nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping

from autopeft.domain.budget import Budget, Spent
from autopeft.domain.errors import TakenTrialError
from autopeft.domain.ports import Proposal
from autopeft.domain.results import RunRecord
from autopeft.domain.trial import Failure, FailureReason, Outcome, Trial, TrialStatus


class MemoryRunStore:
    """`clock` is the wall seconds that sessions took so far; a test may set it."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._budget = record.spec.budget
        self._rows: dict[int, Trial] = {}
        self._lost_attempts: dict[int, int] = {}
        self.clock = 0.0
        self.calls: list[str] = []

    @property
    def record(self) -> RunRecord:
        return self._record

    def budget(self) -> Budget:
        return self._budget

    def set_budget(self, budget: Budget) -> None:
        self._budget = budget

    def spent(self) -> Spent:
        rows = self._rows.values()
        return Spent(
            trials=sum(row.status.ended and not row.refused for row in rows),
            seconds=self.clock,
            gpu_seconds=sum(row.gpu_seconds for row in rows),
        )

    def trials(self) -> list[Trial]:
        return [self._rows[number] for number in sorted(self._rows)]

    def open_session(self) -> list[Trial]:
        self.calls.append("open")
        running = [row for row in self._rows.values() if row.status is TrialStatus.RUNNING]
        put_back = {"status": TrialStatus.PENDING}
        return [
            self._write("recover", row.model_copy(update={**put_back, "driver_deaths": row.driver_deaths + 1}))
            for row in running
        ]

    def heartbeat(self) -> None:
        self.calls.append("heartbeat")

    def close_session(self) -> None:
        self.calls.append("close")

    def add(self, proposal: Proposal, seed: int) -> Trial:
        taken = (proposal.candidate.digest, seed)
        if any((row.digest, row.seed) == taken for row in self._rows.values()):
            raise TakenTrialError(proposal.candidate.digest)
        number = len(self._rows)
        row = Trial(
            number=number,
            candidate=proposal.candidate,
            parameters=proposal.parameters,
            seed=seed,
            status=TrialStatus.PENDING,
            sampler_state=proposal.sampler_state,
            created_at=time.time(),
        )
        return self._write("add", row)

    def refuse(self, proposal: Proposal, seed: int, outcome: Outcome) -> Trial:
        trial = self.add(proposal, seed)
        self.calls.pop()
        update = {"status": outcome.status, "failure": outcome.failure, "measurements": outcome.measurements}
        return self._write("refuse", trial.model_copy(update={**update, "finished_at": time.time()}))

    def reopen(self, number: int) -> Trial:
        row = self._rows[number]
        assert row.status is TrialStatus.STOPPED_EARLY
        return self._write("reopen", row.model_copy(update={"status": TrialStatus.PENDING, "finished_at": None}))

    def start(self, number: int, worker: str, *, gpus: float = 0.0) -> Trial:
        row = self._rows[number]
        assert row.status is TrialStatus.PENDING
        update = {"status": TrialStatus.RUNNING, "attempt": row.attempt + 1, "worker": worker}
        return self._write("start", row.model_copy(update={**update, "started_at": time.time()}))

    def finish(self, number: int, attempt: int, outcome: Outcome, gpus: float) -> Trial | None:
        row = self._rows[number]
        if row.attempt != attempt or row.status is not TrialStatus.RUNNING:
            return None
        update = {
            "status": outcome.status,
            "measurements": outcome.measurements,
            "failure": outcome.failure,
            "finished_at": time.time(),
            "seconds": row.seconds + outcome.seconds,
            "gpu_seconds": row.gpu_seconds + outcome.seconds * gpus,
        }
        return self._write("finish", row.model_copy(update=update))

    def release(self, number: int, attempt: int, status: TrialStatus, seconds: float, gpus: float) -> Trial | None:
        row = self._rows[number]
        if row.attempt != attempt or row.status is not TrialStatus.RUNNING:
            return None
        failure = None
        if status is TrialStatus.LOST:
            self._lost_attempts[number] = self._lost_attempts.get(number, 0) + 1
            if self._lost_attempts[number] <= self._record.spec.retries:
                status = TrialStatus.PENDING
            else:
                failure = Failure(reason=FailureReason.WORKER_DIED, text="Its worker died.")
        update = {
            "status": status,
            "failure": failure,
            "seconds": row.seconds + seconds,
            "gpu_seconds": row.gpu_seconds + seconds * gpus,
        }
        return self._write("release", row.model_copy(update=update))

    def record_test(self, number: int, quality: Mapping[str, float]) -> Trial:
        return self._write("record_test", self._rows[number].model_copy(update={"test_quality": dict(quality)}))

    def _write(self, call: str, row: Trial) -> Trial:
        self.calls.append(f"{call} {row.number} {row.status}")
        self._rows[row.number] = row
        return row
