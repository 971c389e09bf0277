"""What the trial table costs: `python tests/bench/store.py [URL]`, beside a bare sqlite3 file with the same commits."""

import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.store import open_store
from tests.contract.run_samples import complete, proposal_of, record_of

TRIALS = 300
ROWS = 10_000


def milliseconds_per_trial(url):
    """Add, start and finish, three commits a trial."""
    store = open_store(url)
    run = store.create(record_of(f"bench-{time.time_ns()}"))
    run.open_session()
    began, computed = time.perf_counter(), time.process_time()
    for index in range(TRIALS):
        trial = run.start(run.add(proposal_of(index), 1).number, "w")
        run.finish(trial.number, trial.attempt, complete(), 0)
    took = (time.perf_counter() - began) / TRIALS * 1000
    computed = (time.process_time() - computed) / TRIALS * 1000
    began = time.perf_counter()
    for _ in range(200):
        run.spent()
    spent = (time.perf_counter() - began) / 200 * 1000
    store.close()
    return took, computed, spent


def bare_milliseconds_per_trial(path, modes):
    """The least that three commits of the same bytes cost; `modes` are how each waits for the disk."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, status TEXT, body TEXT)")
    body = json.dumps(complete().model_dump(mode="json"))
    statements = (
        ("INSERT INTO t VALUES (?2, 'pending', ?1)", ""),
        ("UPDATE t SET status = 'running', body = ?1 WHERE number = ?2", ""),
        ("UPDATE t SET status = 'complete', body = ?1 WHERE number = ?2", body),
    )
    began = time.perf_counter()
    for index in range(TRIALS):
        for mode, (statement, text) in zip(modes, statements, strict=True):
            connection.execute(f"PRAGMA synchronous = {mode}")
            connection.execute(statement, (text, index))
    took = (time.perf_counter() - began) / TRIALS * 1000
    connection.close()
    return took


def seconds_to_read_all(url):
    """`trials()` of a long run."""
    store = open_store(url)
    run = store.create(record_of(f"long-{time.time_ns()}"))
    run.open_session()
    trial = run.start(run.add(proposal_of(0), 0).number, "w")
    run.finish(trial.number, trial.attempt, complete(), 0)
    with store._database.writing() as connection:
        columns = "digest, status, attempt, losses, worker, created_at, started_at, finished_at, seconds, gpu_seconds"
        columns += ", candidate, parameters, sampler_state, measurements, failure, test_quality"
        connection.exec_driver_sql(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS - 1}) "
            f"INSERT INTO autopeft_trials (run_id, number, seed, {columns}) "
            f"SELECT run_id, i, i, {columns} FROM autopeft_trials, n WHERE run_id = {run._run_id} AND number = 0"
        )
    began, computed = time.perf_counter(), time.process_time()
    count = len(run.trials())
    took, computed = time.perf_counter() - began, time.process_time() - computed
    store.close()
    return count, took, computed


def main():
    """Print every number with what it is compared to."""
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder}/trials.db"
        took, computed, spent = milliseconds_per_trial(url)
        print(
            f"add + start + finish: {took:.2f} ms per trial, of which this process computed {computed:.2f} ms; "
            f"spent(): {spent:.2f} ms"
        )
        for modes in (("NORMAL", "NORMAL", "FULL"), ("FULL", "FULL", "FULL")):
            bare = bare_milliseconds_per_trial(f"{folder}/{'-'.join(modes)}.db", modes)
            print(f"three commits of bare sqlite3, {', '.join(modes)}: {bare:.2f} ms; ratio {took / bare:.1f}")
        count, read, computed = seconds_to_read_all(url)
        print(f"trials() of {count} rows: {read:.2f} s, of which this process computed {computed:.2f} s")


if __name__ == "__main__":
    main()
