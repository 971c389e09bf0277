"""One writing session per run: who has the run, whether that process lives, and the clock of its wall seconds."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from autopeft.domain.errors import RunBusyError
from autopeft.store.database import Database
from autopeft.store.tables import runs, sessions

LEASE_S = 30.0
"""After this long without a heartbeat a session of another machine counts as dead."""
BEAT_S = 0.4
"""Heartbeats that come faster than this cost nothing."""
_SAME_START_S = 2.0
"""The kernel's start time of a process wanders by about a second when the clock is set."""


@cache
def machine() -> str:
    """Where a process number means something: host, boot and process namespace."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.startswith("/proc/self") else Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return "/".join(parts)


def lock_run(connection: Connection, run_id: int) -> None:
    """Make every other writer of this run wait until the transaction ends (SQLite: all writers wait already)."""
    connection.execute(sa.select(runs.c.id).where(runs.c.id == run_id).with_for_update())


class Session:
    """This process's hold on a run."""

    def __init__(self, database: Database, run_id: int, session_id: int) -> None:
        self._database = database
        self._run_id = run_id
        self._id = session_id
        self._opened = self._beaten = time.monotonic()

    @classmethod
    def open(cls, database: Database, connection: Connection, run_id: int) -> Session:
        """Take the run; the caller's transaction has locked it.

        Raises:
            RunBusyError: where another live process has it.
        """
        query = sa.select(sessions, database.now().label("now"))
        row = connection.execute(query.where(sessions.c.run_id == run_id, sessions.c.closed_at.is_(None)))
        owner = row.mappings().first()
        if owner is not None:
            if _lives(owner):
                raise RunBusyError(
                    f"process {owner['pid']} on {owner['host']} works on this run since "
                    f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(owner['opened_at']))}. "
                    "Wait for it, or stop it, then run the same command again."
                )
            ended = sa.update(sessions).where(sessions.c.id == owner["id"])
            connection.execute(ended.values(closed_at=sessions.c.heartbeat_at))
        values = {
            "run_id": run_id,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "opened_at": database.now(),
            "heartbeat_at": database.now(),
            "seconds": 0.0,
        }
        session_id = connection.execute(sa.insert(sessions).values(values).returning(sessions.c.id)).scalar_one()
        return cls(database, run_id, session_id)

    @property
    def id(self) -> int:
        """Of its row."""
        return self._id

    @property
    def seconds(self) -> float:
        """Wall seconds since it was opened, by a clock that nobody sets."""
        return time.monotonic() - self._opened

    def heartbeat(self) -> None:
        """Keep the lease and the stored clock.

        Raises:
            RunBusyError: where another process has taken the run over.
        """
        if time.monotonic() - self._beaten < BEAT_S:
            return
        with self._database.writing(durable=False) as connection:
            self.touch(connection)

    def touch(self, connection: Connection) -> None:
        """The heartbeat within a transaction that writes anyway; the same errors."""
        beat = sa.update(sessions).where(sessions.c.id == self._id, sessions.c.closed_at.is_(None))
        done = connection.execute(beat.values(heartbeat_at=self._database.now(), seconds=self.seconds))
        if done.rowcount == 0:
            raise RunBusyError(
                "another process took this run over, because this one had not been heard of for "
                f"{LEASE_S:.0f} seconds. Run the same command again once the other one has ended."
            )
        self._beaten = time.monotonic()

    def close(self) -> None:
        """Give the run back; a session that was taken over stays as it is."""
        with self._database.writing() as connection:
            end = sa.update(sessions).where(sessions.c.id == self._id, sessions.c.closed_at.is_(None))
            now = self._database.now()
            connection.execute(end.values(heartbeat_at=now, closed_at=now, seconds=self.seconds))


def stored_seconds(connection: Connection, run_id: int, but: Session | None) -> float:
    """Wall seconds of every session of the run as last heard of, without the session `but`."""
    query = sa.select(sa.func.coalesce(sa.func.sum(sessions.c.seconds), 0.0)).where(sessions.c.run_id == run_id)
    if but is not None:
        query = query.where(sessions.c.id != but.id)
    return float(connection.execute(query).scalar_one())


def last_heartbeat(connection: Connection, run_id: int) -> float | None:
    """Unix seconds at which a session of the run was last heard of; None before the first."""
    found = connection.scalar(sa.select(sa.func.max(sessions.c.heartbeat_at)).where(sessions.c.run_id == run_id))
    return None if found is None else float(found)


def _lives(owner: Mapping[str, Any] | sa.RowMapping) -> bool:
    """Whether the process that owns a session still runs, or, where that cannot be seen from here, may run."""
    if owner["machine"] != machine():
        return bool(owner["now"] - owner["heartbeat_at"] < LEASE_S)
    try:
        process = psutil.Process(owner["pid"])
        # A killed process whose parent has not looked after it yet holds its number, and nothing else.
        dead = process.status() == psutil.STATUS_ZOMBIE
        return not dead and abs(process.create_time() - owner["process_started"]) < _SAME_START_S
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
