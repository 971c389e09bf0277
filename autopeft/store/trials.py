"""The trial table of one run. Every method is one statement or one transaction of the caller's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from autopeft.domain.errors import TakenTrialError
from autopeft.domain.ports import Proposal
from autopeft.domain.trial import Failure, FailureReason, Outcome, Trial, TrialStatus
from autopeft.store.rows import first, to_text, trial_from
from autopeft.store.tables import trials

MAX_DRIVER_DEATHS = 10
"""A trial that ran so often when its driver died is not started again.

Without a limit, a trial that brings its driver down (a crash below Python or too little host memory, under the local
runner) would end every session of the run. Kills from outside must not reach it: the same trial is hit again only while
it has not ended. Where it takes a third of the time between two kills, ten of 20 hit it in a row with a chance of
11 / 3**9, below one in a thousand; where it takes longer than that time, it would never end in any case.
"""

_ENDED = [status.value for status in TrialStatus if status.ended]


class TrialTable:
    """Rows of one run; the caller brings the transaction and has locked the run where it says so."""

    def __init__(self, run_id: int) -> None:
        self._run_id = run_id

    def all(self, connection: Connection) -> list[Trial]:
        """Every trial in order of number."""
        query = sa.select(trials).where(trials.c.run_id == self._run_id).order_by(trials.c.number)
        return [trial_from(dict(row)) for row in connection.execute(query).mappings()]

    def spent(self, connection: Connection) -> tuple[int, float]:
        """Trials that were started and ended, and GPU seconds of all attempts."""
        ended = sa.func.count().filter(trials.c.status.in_(_ENDED), trials.c.attempt > 0)
        charged = sa.func.coalesce(sa.func.sum(trials.c.gpu_seconds), 0.0)
        row = connection.execute(sa.select(ended, charged).where(trials.c.run_id == self._run_id)).one()
        return int(row[0]), float(row[1])

    def add(self, connection: Connection, proposal: Proposal, seed: int, refused: Outcome | None = None) -> Trial:
        """A new pending trial with the next number, or one that is refused at once; the run is locked.

        Raises:
            TakenTrialError: where the run has a trial of this candidate and seed.
        """
        number = sa.select(sa.func.coalesce(sa.func.max(trials.c.number) + 1, 0)).where(trials.c.run_id == self._run_id)
        row = {
            "run_id": self._run_id,
            "number": connection.execute(number).scalar_one(),
            "digest": proposal.candidate.digest,
            "seed": seed,
            "status": TrialStatus.PENDING.value,
            "created_at": time.time(),
            **({} if refused is None else _ended(refused)),
            "candidate": to_text(proposal.candidate),
            "parameters": to_text(dict(proposal.parameters)),
            "sampler_state": to_text(dict(proposal.sampler_state)),
        }
        taken = sa.select(trials.c.number).where(
            trials.c.run_id == self._run_id, trials.c.digest == row["digest"], trials.c.seed == seed
        )
        other = connection.scalar(taken)
        if other is not None:
            raise TakenTrialError(f"candidate {row['digest']} with seed {seed} is trial {other} already")
        added = first(connection.execute(sa.insert(trials).values(row).returning(trials)))
        assert added is not None
        return added

    def reopen(self, connection: Connection, number: int) -> Trial:
        """Put a trial that was stopped early back to `pending`, with what it measured.

        Raises:
            ValueError: where it was not stopped early.
        """
        update = self._update(number, trials.c.status == TrialStatus.STOPPED_EARLY.value)
        row = {"status": TrialStatus.PENDING.value, "finished_at": None}
        reopened = first(connection.execute(update.values(row).returning(trials)))
        if reopened is None:
            raise ValueError(f"trial {number} cannot be taken up again: {self._why_not(connection, number)}")
        return reopened

    def start(self, connection: Connection, number: int, worker: str, gpus: float) -> Trial:
        """Mark a pending trial running, one attempt further, on so many GPUs.

        Raises:
            ValueError: where it is not pending.
        """
        update = self._update(number, trials.c.status == TrialStatus.PENDING.value).values(
            status=TrialStatus.RUNNING.value,
            attempt=trials.c.attempt + 1,
            # PostgreSQL's text takes every character but this one.
            worker=worker.replace("\0", ""),
            gpus=gpus,
            started_at=time.time(),
            finished_at=None,
            failure=None,
        )
        started = first(connection.execute(update.returning(trials)))
        if started is None:
            raise ValueError(f"trial {number} cannot be started: {self._why_not(connection, number)}")
        return started

    def finish(self, connection: Connection, number: int, attempt: int, outcome: Outcome, gpus: float) -> Trial | None:
        """Record how an attempt ended and charge it; None where it is not the current one."""
        return self._end(
            connection,
            number,
            attempt,
            status=outcome.status,
            seconds=outcome.seconds,
            gpus=gpus,
            failure=outcome.failure,
            measurements=None if outcome.measurements is None else to_text(outcome.measurements),
        )

    def put_back(self, connection: Connection, number: int, attempt: int, seconds: float, gpus: float) -> Trial | None:
        """Charge an attempt and make the trial pending again, its retries untouched; None where it is not current."""
        return self._end(
            connection, number, attempt, status=TrialStatus.PENDING, seconds=seconds, gpus=gpus, failure=None
        )

    def lose(
        self, connection: Connection, number: int, attempt: int, seconds: float, gpus: float, retries: int
    ) -> Trial | None:
        """Charge an attempt whose worker died and count the loss; pending while retries last, else lost.

        Deaths of the driver are counted apart: they mostly say nothing about the trial that happened to run.
        """
        query = sa.select(trials.c.losses).where(self._key(number)).with_for_update()
        losses = (connection.scalar(query) or 0) + 1
        status = TrialStatus.PENDING if losses <= retries else TrialStatus.LOST
        times = "once" if losses == 1 else f"{losses} times"
        then = "it is started again" if losses <= retries else f"its {retries} retries are used up"
        return self._end(
            connection,
            number,
            attempt,
            status=status,
            seconds=seconds,
            gpus=gpus,
            failure=Failure(reason=FailureReason.WORKER_DIED, text=f"Its worker died {times}; {then}."),
            losses=losses,
        )

    def recover(self, connection: Connection, heard: float | None) -> list[Trial]:
        """Put every running trial back, or mark it lost at its last driver death: the session that ran it is dead.

        Each is charged from its start until its session was last heard of, with the GPUs it was started on.

        Args:
            connection: A transaction that has locked the run and taken its session.
            heard: When a session was last heard of, Unix seconds.
        """
        running = sa.and_(trials.c.run_id == self._run_id, trials.c.status == TrialStatus.RUNNING.value)
        columns = (trials.c.number, trials.c.attempt, trials.c.started_at, trials.c.gpus, trials.c.driver_deaths)
        found = []
        for row in connection.execute(sa.select(*columns).where(running).order_by(trials.c.number)).all():
            deaths = row.driver_deaths + 1
            status = TrialStatus.PENDING if deaths < MAX_DRIVER_DEATHS else TrialStatus.LOST
            trial = self._end(
                connection,
                row.number,
                row.attempt,
                status=status,
                seconds=max(0.0, (heard or 0.0) - (row.started_at or 0.0)),
                gpus=row.gpus,
                failure=_driver_died(deaths),
                driver_deaths=deaths,
            )
            found += [trial] if trial is not None else []
        return found

    def record_test(self, connection: Connection, number: int, quality: Mapping[str, float]) -> Trial:
        """Write the test metrics of a trial.

        Raises:
            KeyError: where there is no such trial.
        """
        update = sa.update(trials).where(self._key(number)).values(test_quality=to_text(dict(quality)))
        trial = first(connection.execute(update.returning(trials)))
        if trial is None:
            raise KeyError(f"there is no trial {number}")
        return trial

    def _end(
        self,
        connection: Connection,
        number: int,
        attempt: int,
        *,
        status: TrialStatus,
        seconds: float,
        gpus: float,
        failure: Failure | None,
        **more: Any,
    ) -> Trial | None:
        """The one statement that takes a trial out of `running`; the attempt in its condition fences late results."""
        current = sa.and_(trials.c.status == TrialStatus.RUNNING.value, trials.c.attempt == attempt)
        update = self._update(number, current).values(
            status=status.value,
            finished_at=time.time() if status.ended else None,
            seconds=trials.c.seconds + seconds,
            gpu_seconds=trials.c.gpu_seconds + seconds * gpus,
            failure=None if failure is None else to_text(failure),
            **more,
        )
        return first(connection.execute(update.returning(trials)))

    def _key(self, number: int) -> sa.ColumnElement[bool]:
        return sa.and_(trials.c.run_id == self._run_id, trials.c.number == number)

    def _update(self, number: int, condition: sa.ColumnElement[bool]) -> sa.Update:
        return sa.update(trials).where(self._key(number), condition)

    def _why_not(self, connection: Connection, number: int) -> str:
        status = connection.scalar(sa.select(trials.c.status).where(self._key(number)))
        return "there is none" if status is None else f"it is {status}"


def _ended(outcome: Outcome) -> dict[str, Any]:
    """Columns of a trial that ended before it was started."""
    return {
        "status": outcome.status.value,
        "finished_at": time.time(),
        "failure": None if outcome.failure is None else to_text(outcome.failure),
        "measurements": None if outcome.measurements is None else to_text(outcome.measurements),
    }


def _driver_died(deaths: int) -> Failure:
    times = "once" if deaths == 1 else f"{deaths} times"
    then = "it is started again" if deaths < MAX_DRIVER_DEATHS else "it is not started again, as it may be the cause"
    return Failure(
        reason=FailureReason.DRIVER_DIED, text=f"The search was killed or crashed {times} while it ran; {then}."
    )
