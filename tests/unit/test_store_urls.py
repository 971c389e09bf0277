"""Opening a database: what is accepted, and what a person is told otherwise."""

import socket
import sqlite3
import sys

import pytest
from sqlalchemy import event

from autopeft.domain.errors import UserError
from autopeft.store import open_store
from tests.contract.run_samples import complete, proposal_of, record_of

SECRET = "tr0ub4dor"


def told(url):
    """The message for this URL; it must never show the password."""
    with pytest.raises(UserError) as error:
        open_store(url)
    text = str(error.value) + repr(error.value) + "".join(map(repr, error.value.problems))
    assert SECRET not in text
    assert error.value.__cause__ is None, "a chained error could show the URL"
    problem = error.value.problems[0]
    assert problem.allowed or problem.next_step
    return str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "trials.db",
        f"mysql://me:{SECRET}@host/x",
        f"postgresql+asyncpg://me:{SECRET}@host/x",
        f"postgresql://me:{SECRET}@host:port/x",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_urls_that_are_no_database_of_ours_are_refused_with_what_is_allowed(url):
    assert "sqlite:///FOLDER/trials.db or postgresql://" in told(url)


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = told(f"postgresql://me:{SECRET}@127.0.0.1:{port}/x")
    assert f"127.0.0.1:{port}" in text
    assert "cannot be reached" in text


def test_a_missing_driver_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "sqlalchemy.dialects.postgresql.psycopg", raising=False)
    assert "pip install 'autopeft[postgres]'" in told(f"postgresql://me:{SECRET}@127.0.0.1/x")


def test_a_missing_folder_is_named(tmp_path):
    assert "cannot be opened" in told(f"sqlite:///{tmp_path}/nowhere/trials.db")


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "trials.db"
    path.write_text("just some text\n" * 100)
    assert "not an SQLite database" in told(f"sqlite:///{path}")
    assert path.read_text() == "just some text\n" * 100


def test_a_relative_path_and_other_tables_in_the_file_are_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("x.db") as other:
        other.execute("CREATE TABLE runs (mine INTEGER)")
    other.close()
    store = open_store("sqlite:///x.db")
    store.create(record_of())
    store.close()
    assert (tmp_path / "x.db").exists()


def test_results_outlive_a_power_cut_and_only_they_pay_for_it(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/trials.db")
    modes = []

    def note(connection, cursor, statement, parameters, context, executemany):
        if statement.startswith("PRAGMA synchronous"):
            modes.append(statement.rpartition(" ")[2])

    event.listen(store._database._engine, "before_cursor_execute", note)

    def modes_of(action):
        modes.clear()
        action()
        return list(modes)

    run = store.create(record_of())
    assert modes_of(run.open_session) == ["NORMAL"]
    assert modes_of(lambda: run.add(proposal_of(0), 1)) == ["NORMAL"]
    assert modes_of(lambda: run.start(0, "w")) == ["NORMAL"]
    assert modes_of(lambda: run.finish(0, 1, complete(), 0)) == ["FULL"]
    assert modes_of(lambda: run.record_test(0, {"accuracy": 0.5})) == ["FULL"]
    assert modes_of(lambda: run.set_budget(run.budget())) == ["FULL"]
    assert modes_of(run.trials) == []
    with store._database.writing() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "foreign_keys")]
        assert (found, connection.exec_driver_sql("PRAGMA synchronous").scalar()) == (["wal", 1], 2)
    store.close()


def test_a_full_disk_is_named_and_nothing_committed_is_lost(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/trials.db")
    engine = store._database._engine
    run = store.create(record_of())
    run.open_session()
    run.add(proposal_of(0), 1)
    run.start(0, "w")
    engine.dispose()

    def no_more_pages(connection, record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(engine, "connect", no_more_pages)
    modules = tuple(f"layer.{index}" for index in range(10_000))
    with pytest.raises(UserError, match=r"disk is full.*Free some space"):
        run.finish(0, 1, complete(inserted_modules=modules), 0)
    event.remove(engine, "connect", no_more_pages)
    engine.dispose()
    assert [trial.status.value for trial in run.trials()] == ["running"]
    assert run.finish(0, 1, complete(inserted_modules=modules), 0) is not None
    store.close()


def test_reading_goes_on_while_somebody_writes(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/trials.db")
    run = store.create(record_of())
    run.open_session()
    run.add(proposal_of(0), 1)
    reader = open_store(f"sqlite:///{tmp_path}/trials.db")
    with store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE autopeft_trials SET status = 'running'")
        assert [trial.status.value for trial in reader.open("a-run").trials()] == ["pending"]
    reader.close()
    store.close()
