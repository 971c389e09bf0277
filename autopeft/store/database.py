"""The connection to a database: URL, pragmas, transactions, schema version, and errors in a person's words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url

from autopeft.domain.errors import Problem, UserError
from autopeft.store.failures import describe
from autopeft.store.tables import SCHEMA_VERSION, metadata, schema

_ALLOWED = "sqlite:///FOLDER/trials.db or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
_CREATE_LOCK = 0x6175746F
"""Key of the advisory lock under which one process at a time makes the tables."""
BUSY_TIMEOUT_S = 30


class Database:
    """An engine, and transactions that either read or write."""

    def __init__(self, url: str) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            UserError: where the URL cannot be read, the driver is missing, the database cannot be reached or opened,
                or a newer version made it.
        """
        self._url = _read(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        try:
            self._engine = _engine(self._url)
        except ModuleNotFoundError as error:
            raise UserError(
                Problem(
                    "store",
                    f"PostgreSQL needs the package psycopg, which is not installed ({error.name})",
                    "",
                    "pip install 'autopeft[postgres]', or leave --store out to use a file in the run folder.",
                )
            ) from None
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Database({self.shown})"

    @property
    def shown(self) -> str:
        """The URL without password and options."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._speaking_plainly(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that is committed at the end and undone where an exception passes.

        On SQLite it holds the write lock from its first moment, so that a read in it cannot go stale before the write.

        Args:
            durable: Whether the commit must outlive a power cut, which costs SQLite an fsync (1 to 10 ms). Without it,
                the commit outlives any kill, and after a power cut the file is whole but may lack the commits since
                the last durable one.
        """
        with self._speaking_plainly(), self._engine.connect() as connection:
            connection.execution_options(autopeft_writes=True, autopeft_durable=durable)
            with connection.begin():
                yield connection

    def now(self) -> sa.ColumnElement[float]:
        """Unix seconds as SQL, by the one clock that every session on this database shares."""
        if self.is_sqlite:
            return sa.literal(time.time(), sa.Double)
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()

    @contextmanager
    def _speaking_plainly(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            problem = describe(error, self._url, self.shown)
            if problem is None:
                raise
            raise UserError(problem) from None

    def _prepare(self) -> None:
        if self.is_sqlite:
            self._use_write_ahead_log()
        with self.reading() as connection:
            there = sa.inspect(connection).has_table(schema.name)
            version = connection.scalar(sa.select(sa.func.max(schema.c.version))) if there else None
        if version is None:
            with self.writing() as connection:
                if not self.is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
                metadata.create_all(connection)
                version = connection.scalar(sa.select(sa.func.max(schema.c.version)))
                if version is None:
                    connection.execute(sa.insert(schema).values(version=SCHEMA_VERSION))
                    version = SCHEMA_VERSION
        if version > SCHEMA_VERSION:
            raise UserError(
                Problem(
                    "store",
                    f"{self.shown} was made by a newer AutoPEFT (tables of version {version})",
                    f"version {SCHEMA_VERSION} or older",
                    "Upgrade: pip install -U autopeft.",
                )
            )

    def _use_write_ahead_log(self) -> None:
        """Switch the file to write-ahead logging, which lasts; other processes may be doing the same."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        with self._speaking_plainly(), self._engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            while True:
                try:
                    if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                        raw.execute("PRAGMA journal_mode = WAL")
                    return
                except Exception as error:
                    # SQLite does not wait for this lock, whatever busy_timeout says.
                    if "locked" not in str(error) or time.monotonic() > deadline:
                        raise sa.exc.OperationalError("PRAGMA journal_mode", None, error) from None
                    time.sleep(0.05)


def _read(text: str) -> URL:
    try:
        url = make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise UserError(Problem("store", "the database URL cannot be read", _ALLOWED)) from None
    if url.drivername in _POSTGRES:
        # A password among the options would show where SQLAlchemy hides the other one.
        found = url.query.get("password")
        password = (found if isinstance(found, str) else found[-1]) if found else url.password
        url = url.difference_update_query(["password"])
        return url.set(drivername="postgresql+psycopg", password=str(password) if password else None)
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise UserError(Problem("store", f"'{url.drivername}' databases are not supported", _ALLOWED))
    if url.database in (None, "", ":memory:"):
        raise UserError(Problem("store", "the URL names no file", _ALLOWED))
    return url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        options = {"connect_timeout": 10, "application_name": "autopeft"}
        given = {key: value for key, value in options.items() if key not in url.query}
        return sa.create_engine(url, connect_args=given, pool_pre_ping=True, hide_parameters=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        # None hands transactions over to the BEGIN below; Python's own would begin before the first write only.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("autopeft_writes", False):
            durable = options.get("autopeft_durable", True)
            connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")

    return engine
