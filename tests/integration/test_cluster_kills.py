"""A search survives kill -9 of its driver at any moment: the same command goes on, nothing is lost or repeated."""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autopeft.app.folder import RunFolder
from autopeft.domain.results import Front, score
from autopeft.domain.trial import TrialStatus
from autopeft.store import open_store
from tests.contract.runner_contract import Program, stored
from tests.fakes.searches import toy_objectives


def kill(program: Program) -> None:
    program.process.send_signal(signal.SIGKILL)
    program.process.wait()
    if program.process.stdout is not None:
        program.lines += program.process.stdout.read().splitlines()


def check_whole(folder: Path, trials: int, kills: int, workers: int) -> None:
    rows = stored(folder)
    assert [row.number for row in rows] == list(range(trials))
    assert {row.status for row in rows} == {TrialStatus.COMPLETE}
    assert len({row.digest for row in rows}) == trials
    check_log(folder, trials, kills, workers)


def check_log(folder: Path, trials: int, kills: int, workers: int) -> None:
    log = (folder / "log").read_text().splitlines()
    began = [tuple(line.split()[1:3]) for line in log if line.startswith("began")]
    # Only what ran when the driver was killed is trained again, under another attempt's number.
    assert len(set(began)) == len(began)
    assert trials <= len(began) <= trials + kills * workers


@pytest.mark.slow
def test_twenty_kills_of_the_driver_leave_every_trial_exactly_once(tmp_path: Path) -> None:
    draw = random.Random(20)
    asked = {
        "runner": "local",
        "trials": 40,
        "evaluator": {"delay_s": 0.25, "rungs": 5, "log": str(tmp_path / "log")},
    }
    for turn in range(20):
        program = Program(tmp_path, **asked)
        if turn % 4 < 3:
            # While it trains; every fourth time at any moment, imports and replay included.
            program.wait_for("opened")
            time.sleep(draw.uniform(0, 0.8))
        else:
            time.sleep(draw.uniform(0, 1.2))
        kill(program)
    before = stored(tmp_path)
    assert sum(row.status.ended for row in before) < 40
    last = Program(tmp_path, **asked)
    assert last.end() == 0, last.lines
    opened = next(line for line in last.lines if line.startswith("opened"))
    done = sum(row.status is TrialStatus.COMPLETE for row in before)
    running = sum(row.status is TrialStatus.RUNNING for row in before)
    assert opened == f"opened {done} {running}"
    check_whole(tmp_path, 40, 20, 1)

    # With one worker, the sampler proposed what it would have proposed undisturbed.
    calm = tmp_path / "calm"
    calm.mkdir()
    assert Program(calm, runner="local", trials=40, evaluator={"rungs": 5}).end() == 0
    assert [row.digest for row in stored(tmp_path)] == [row.digest for row in stored(calm)]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_kills_of_the_whole_command_at_any_stage_leave_a_complete_run_folder(tmp_path: Path) -> None:
    draw = random.Random(4)
    runs = tmp_path / "runs"
    folder = runs / "killed"
    arguments = {"delay_s": 0.05, "rungs": 2, "log": str(tmp_path / "log")}

    def program() -> Program:
        return Program(runs, module="tests.fakes.run_app_search", trials=12, evaluator=arguments)

    one = program()
    wait_until(folder.is_dir)  # while the folder is made
    kill(one)
    one = program()
    time.sleep(draw.uniform(0, 4))  # while it starts
    kill(one)
    one = program()
    one.wait_for("opened")
    time.sleep(draw.uniform(0.1, 0.5))  # while it trains
    kill(one)
    one = program()
    one.wait_for("ended 11")
    time.sleep(draw.uniform(0, 0.3))  # while it writes its results
    kill(one)
    assert not (folder / "best").exists()
    last = program()
    assert last.end() == 0, last.lines
    assert "end False The budget of 12 trials is used up." in last.lines

    check_log(tmp_path, 12, 4, 1)
    store = open_store(RunFolder(folder).sqlite_url)
    run = store.open("killed")
    assert run is not None
    trials = run.trials()
    store.close()
    assert [trial.number for trial in trials] == list(range(12))
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETE}
    assert len({trial.digest for trial in trials}) == 12
    front = {int(row["trial"]) for row in csv.DictReader((folder / "front.csv").open())}
    assert front == Front.of(toy_objectives(), [score(trial, toy_objectives()) for trial in trials]).numbers
    assert {int(left.name[:4]) for left in (folder / "artefacts").iterdir()} == front
    assert {trial.number for trial in trials if trial.test_quality is not None} == front
    assert {best.name for best in (folder / "best").iterdir()} == {"knee", "most-accurate", "smallest"}
    for name in ("trials.parquet", "report.html", "spec.yaml", "space.yaml"):
        assert (folder / name).stat().st_size > 0
    assert not list(folder.glob("*.partial"))


def processes_of(driver: int) -> list[str]:
    """Live processes of the Ray that this driver started, by the folder they work in."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        try:
            environment = process.environ()
        except psutil.Error:
            environment = {}
        mark = re.compile(rf"autopeft-{driver}-")
        named = mark.search(command) or any(mark.search(value) for value in environment.values())
        if named and process.info["status"] != psutil.STATUS_ZOMBIE and process.info["pid"] != os.getpid():
            found.append(command)
    return found


@pytest.mark.slow
def test_kills_of_a_driver_with_ray_workers_lose_nothing_and_leave_no_process(tmp_path: Path) -> None:
    draw = random.Random(3)
    asked = {
        "runner": "ray",
        "trials": 10,
        "workers": 2,
        "evaluator": {"delay_s": 0.6, "rungs": 2, "log": str(tmp_path / "log")},
    }
    for _ in range(3):
        program = Program(tmp_path, **asked)
        program.wait_for("ended")
        time.sleep(draw.uniform(0.2, 1.2))
        assert processes_of(program.process.pid)
        kill(program)
        # Most are gone within a second; a worker that was just starting gives up on its cluster after half a minute.
        deadline = time.monotonic() + 60
        while (left := processes_of(program.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left
    last = Program(tmp_path, **asked)
    assert last.end() == 0, last.lines
    check_whole(tmp_path, 10, 3, 2)
