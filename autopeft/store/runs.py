"""The store and the runs in it, as the ports of the domain ask for them."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from autopeft.domain.budget import Budget, Spent
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.ports import Proposal
from autopeft.domain.results import RunRecord
from autopeft.domain.trial import Outcome, Trial, TrialStatus
from autopeft.store.database import Database
from autopeft.store.rows import model_from, to_text
from autopeft.store.sessions import Session, last_heartbeat, lock_run, stored_seconds
from autopeft.store.tables import runs
from autopeft.store.trials import TrialTable


def open_store(url: str) -> SqlStore:
    """Open a database of runs; a SQLite file is made where there is none, its folder is not.

    Args:
        url: `sqlite:///FOLDER/trials.db` or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.

    Raises:
        UserError: where the URL cannot be read, the driver is missing, or the database cannot be reached or opened.
    """
    return SqlStore(Database(url))


class SqlStore:
    """A database with any number of runs (`domain.ports.Store`)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._opened: list[SqlRunStore] = []

    def __repr__(self) -> str:
        return f"SqlStore({self.shown})"

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self._database.shown

    def create(self, record: RunRecord) -> SqlRunStore:
        """Add a run, with the budget of its spec.

        Raises:
            UserError: where the name is taken.
        """
        row = {
            "name": record.name,
            "created_at": record.created_at,
            "record": to_text(record),
            "budget": to_text(record.spec.budget),
        }
        try:
            with self._database.writing() as connection:
                run_id = connection.execute(sa.insert(runs).values(row).returning(runs.c.id)).scalar_one()
        except sa.exc.IntegrityError:
            raise UserError(
                Problem(
                    "name",
                    f"{self._database.shown} has a run '{record.name}' already",
                    "",
                    "Choose another --name, or repeat its command to go on with it.",
                )
            ) from None
        return self._keep(SqlRunStore(self._database, run_id, record))

    def open(self, name: str) -> SqlRunStore | None:
        """The run of this name, None where there is none."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(runs.c.id, runs.c.record).where(runs.c.name == name)).first()
        if row is None:
            return None
        return self._keep(SqlRunStore(self._database, row[0], model_from(RunRecord, row[1])))

    def names(self) -> list[str]:
        """Names of all runs, oldest first."""
        with self._database.reading() as connection:
            return list(connection.scalars(sa.select(runs.c.name).order_by(runs.c.created_at, runs.c.id)))

    def close(self) -> None:
        """End the sessions that were opened through this store and give every connection back."""
        try:
            for run in self._opened:
                run.close_session()
        finally:
            self._database.close()

    def _keep(self, run: SqlRunStore) -> SqlRunStore:
        self._opened.append(run)
        return run


class SqlRunStore:
    """The trial table of one run (`domain.ports.RunStore`); its methods may be called from any thread.

    What a person or a training run brought (a run, a budget, a result, a test score) outlives a power cut. A proposal
    or a start outlives a kill; a power cut may undo it, and then it is proposed again, nothing being lost.
    """

    def __init__(self, database: Database, run_id: int, record: RunRecord) -> None:
        self._database = database
        self._run_id = run_id
        self._record = record
        self._trials = TrialTable(run_id)
        self._session: Session | None = None

    @property
    def record(self) -> RunRecord:
        """What was searched, on what."""
        return self._record

    def budget(self) -> Budget:
        """What the run may spend in all."""
        with self._database.reading() as connection:
            text = connection.execute(sa.select(runs.c.budget).where(runs.c.id == self._run_id)).scalar_one()
        return model_from(Budget, text)

    def set_budget(self, budget: Budget) -> None:
        """Replace the budget; what was spent stays spent."""
        with self._database.writing() as connection:
            connection.execute(sa.update(runs).where(runs.c.id == self._run_id).values(budget=to_text(budget)))

    def spent(self) -> Spent:
        """Trained and ended trials, wall seconds of all sessions (this one up to now), GPU seconds of all attempts."""
        session = self._session
        with self._database.reading() as connection:
            ended, gpu_seconds = self._trials.spent(connection)
            seconds = stored_seconds(connection, self._run_id, session)
        return Spent(trials=ended, seconds=seconds + (session.seconds if session else 0.0), gpu_seconds=gpu_seconds)

    def trials(self) -> list[Trial]:
        """Every trial in order of number."""
        with self._database.reading() as connection:
            return self._trials.all(connection)

    def open_session(self) -> list[Trial]:
        """Take the run for this process, and put back what a dead session left running.

        Returns these trials: `pending` again, or `lost` where they ran at too many deaths of the driver. Trials that
        were pending already are found in `trials()`.

        Raises:
            RunBusyError: where a live process, this one included, has the run.
        """
        with self._database.writing(durable=False) as connection:
            lock_run(connection, self._run_id)
            heard = last_heartbeat(connection, self._run_id)
            session = Session.open(self._database, connection, self._run_id)
            lost = self._trials.recover(connection, heard)
        self._session = session
        return lost

    def heartbeat(self) -> None:
        """Keep the session's lease and its clock.

        Raises:
            RunBusyError: where another process has taken the run over.
        """
        if self._session is not None:
            self._session.heartbeat()

    def close_session(self) -> None:
        """Give the run back; without a session, nothing happens."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def add(self, proposal: Proposal, seed: int) -> Trial:
        """A new pending trial with the next number.

        Raises:
            TakenTrialError: where the run has a trial of this candidate and seed.
            RunBusyError: where another process has taken the run over.
            RuntimeError: where no session is open.
        """
        session = self._held()
        with self._database.writing(durable=False) as connection:
            lock_run(connection, self._run_id)
            session.touch(connection)
            return self._trials.add(connection, proposal, seed)

    def refuse(self, proposal: Proposal, seed: int, outcome: Outcome) -> Trial:
        """A new trial that ended before it was started.

        Raises:
            ValueError: where the outcome is no end. Others as `add`.
        """
        if not outcome.status.ended:
            raise ValueError(f"a trial cannot be refused as {outcome.status}")
        session = self._held()
        with self._database.writing(durable=False) as connection:
            lock_run(connection, self._run_id)
            session.touch(connection)
            return self._trials.add(connection, proposal, seed, outcome)

    def reopen(self, number: int) -> Trial:
        """Put a trial that was stopped early back to `pending`, with what it measured, to train on.

        Raises:
            ValueError: where the trial was not stopped early.
            RunBusyError: where another process has taken the run over.
            RuntimeError: where no session is open.
        """
        session = self._held()
        with self._database.writing(durable=False) as connection:
            session.touch(connection)
            return self._trials.reopen(connection, number)

    def start(self, number: int, worker: str, *, gpus: float = 0.0) -> Trial:
        """Mark a pending trial running, one attempt further, on so many GPUs.

        Raises:
            ValueError: where the trial is not pending.
            RunBusyError: where another process has taken the run over.
            RuntimeError: where no session is open.
        """
        session = self._held()
        with self._database.writing(durable=False) as connection:
            session.touch(connection)
            return self._trials.start(connection, number, worker, gpus)

    def finish(self, number: int, attempt: int, outcome: Outcome, gpus: float) -> Trial | None:
        """Record how an attempt ended and charge it; None where the attempt is not the current one (a late result).

        Raises:
            ValueError: where the outcome is no end.
        """
        if not outcome.status.ended:
            raise ValueError(f"an attempt cannot end as {outcome.status}")
        with self._database.writing() as connection:
            return self._trials.finish(connection, number, attempt, outcome, gpus)

    def release(self, number: int, attempt: int, status: TrialStatus, seconds: float, gpus: float) -> Trial | None:
        """Put an interrupted (`pending`) or lost (`lost`) attempt back; a lost one is pending while retries last.

        Raises:
            ValueError: for any other status.
        """
        if status not in (TrialStatus.PENDING, TrialStatus.LOST):
            raise ValueError(f"an attempt cannot be put back as {status}")
        with self._database.writing() as connection:
            if status is TrialStatus.PENDING:
                return self._trials.put_back(connection, number, attempt, seconds, gpus)
            return self._trials.lose(connection, number, attempt, seconds, gpus, self._record.spec.retries)

    def record_test(self, number: int, quality: Mapping[str, float]) -> Trial:
        """Write the test metrics of a trial of the front.

        Raises:
            KeyError: where there is no such trial.
        """
        with self._database.writing() as connection:
            return self._trials.record_test(connection, number, quality)

    def _held(self) -> Session:
        if self._session is None:
            raise RuntimeError("a run is written to in a session: call open_session() first")
        return self._session
