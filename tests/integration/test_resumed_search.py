"""A search whose trials are broken off by kill -9 or Ctrl-C ends with the table of one that nothing happened to."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from autopeft.app.folder import RunFolder
from autopeft.domain.trial import CHECKPOINT, Trial, TrialStatus
from autopeft.store import open_store
from tests.contract.runner_contract import Program
from tests.fakes.watched import steps_done
from tests.unit.evaluate_models import save_model, write_data
from tests.unit.interrupted_trials import SECONDS

TRIALS, STEPS = 3, 40
LONG_S = 300
SPACE = """
name: mine
summary: For a test.
parameters:
  rank: {kind: int, low: 1, high: 8}
  rate: {kind: float, low: 1.0e-3, high: 1.0e-2, log: true}
candidate:
  insertions:
    - method: lora
      layers: all
      modules: all
      settings: {rank: $rank, alpha_ratio: 1.0, dropout: 0.1}
  pruning: {criterion: light-peft, settings: {estimation: 0.3, heads: 0.25}}
  learning_rate: $rate
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("resumed")
    save_model(made / "bert")
    (made / "mine.yaml").write_text(SPACE)
    return made


def spec(folder: Path, runner: str = "local", workers: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "model": str(folder / "bert"),
        "data": write_data(folder / "data"),
        "space": str(folder / "mine.yaml"),
        "training": {"steps": STEPS, "batch_size": 8, "rungs": (0.5, 1.0)},
        "sampler": "random",
        "budget": str(TRIALS),
        "seed": 7,
        "resources": {"runner": runner, "workers": workers, "cpus_per_worker": 1, "gpus_per_worker": 0},
        "checkpoint_s": 3600,
        **more,
    }


def program(folder: Path, runs: Path, kills: list[list[int]] | None = None, **more: Any) -> Program:
    asked = {"spec": spec(folder, **more), "log": str(runs / "log"), "kills": kills or []}
    return Program(runs, module="tests.fakes.run_real_search", **asked)


def trials(runs: Path) -> list[Trial]:
    store = open_store(RunFolder(runs / "mine").sqlite_url)
    run = store.open("mine")
    assert run is not None
    found = run.trials()
    store.close()
    return found


def table(runs: Path) -> list[dict[str, Any]]:
    """What the trial table says, but for clocks and interruptions."""
    found = []
    for trial in trials(runs):
        assert trial.measurements is not None, trial.failure
        measured = trial.measurements.model_dump(exclude={*SECONDS, "resumed_at"})
        for rung in measured["rungs"]:
            del rung["train_s"], rung["evaluate_s"]
        row = trial.model_dump(include={"number", "candidate", "parameters", "seed", "status", "test_quality"})
        found.append({**row, **measured})
    return found


@pytest.fixture(scope="module")
def calm(folder: Path) -> list[dict[str, Any]]:
    """The table of a search that nothing happened to."""
    runs = folder / "calm"
    runs.mkdir()
    whole = program(folder, runs)
    assert whole.end(LONG_S) == 0, whole.lines
    found = table(runs)
    assert [row["status"] for row in found] == [TrialStatus.COMPLETE] * TRIALS
    assert not any("taken up" in line for line in whole.lines)
    return found


def check(runs: Path, calm: list[dict[str, Any]], taken_up: dict[int, tuple[int, ...]]) -> None:
    """The table is the calm one's; these trials, and they alone, were gone on with after these steps."""
    assert table(runs) == calm
    found = trials(runs)
    resumed = {trial.number: trial.measurements.resumed_at for trial in found if trial.measurements}
    assert {number: steps for number, steps in resumed.items() if steps} == taken_up
    for number, steps in steps_done(runs / "log").items():
        last = max(attempt for attempt, _ in steps)
        begun = max(taken_up.get(number, (0,)))
        assert [step for attempt, step in steps if attempt == last] == list(range(begun + 1, STEPS + 1)), number
    assert list((runs / "mine").rglob(f"*{CHECKPOINT}*")) == []


def kill_again_and_again(folder: Path, runs: Path, kills: list[list[int]], **more: Any) -> list[str]:
    lines = []
    for _ in kills:
        one = program(folder, runs, kills, **more)
        assert one.end(LONG_S) == -signal.SIGKILL, one.lines
    one = program(folder, runs, kills, **more)
    assert one.end(LONG_S) == 0, one.lines
    lines += one.lines
    return lines


@pytest.mark.slow
def test_kill_9_of_the_local_runner(folder: Path, tmp_path: Path, calm: list[dict[str, Any]]) -> None:
    # Before the rung there is no checkpoint; behind it there is.
    lines = kill_again_and_again(folder, tmp_path, [[0, 1, 10], [1, 1, 25], [1, 2, 30]])
    assert "taken up 1 20 " in lines
    check(tmp_path, calm, {1: (20,)})
    assert [trial.attempt for trial in trials(tmp_path)] == [2, 3, 1]
    assert [trial.driver_deaths for trial in trials(tmp_path)] == [1, 2, 0]


@pytest.mark.slow
def test_kill_9_with_a_checkpoint_after_every_step(folder: Path, tmp_path: Path, calm: list[dict[str, Any]]) -> None:
    # In the estimation, at its end, after it.
    kills = [[0, 1, 7], [0, 2, 13], [0, 3, 31]]
    kill_again_and_again(folder, tmp_path, kills, checkpoint_s=0)
    # A step counts where its checkpoint was written, which it is after it was noted.
    check(tmp_path, calm, {0: (6, 12, 30)})


@pytest.mark.slow
def test_kill_9_of_a_ray_worker(folder: Path, tmp_path: Path, calm: list[dict[str, Any]]) -> None:
    one = program(folder, tmp_path, [[0, 1, 25], [1, 1, 33]], runner="ray", workers=2)
    assert one.end(LONG_S) == 0, one.lines
    assert {"taken up 0 20 ", "taken up 1 20 "} <= set(one.lines)
    check(tmp_path, calm, {0: (20,), 1: (20,)})
    assert sum(trial.driver_deaths for trial in trials(tmp_path)) == 0


def wait_for_step(runs: Path, trial: int, step: int) -> None:
    deadline = time.monotonic() + LONG_S
    while not any(number >= step for _, number in steps_done(runs / "log").get(trial, [])):
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_kill_9_of_a_driver_with_ray_workers(folder: Path, tmp_path: Path, calm: list[dict[str, Any]]) -> None:
    asked: dict[str, Any] = {"runner": "ray", "workers": 1, "checkpoint_s": 0}
    one = program(folder, tmp_path, **asked)
    wait_for_step(tmp_path, 1, 10)
    one.process.send_signal(signal.SIGKILL)
    one.end(LONG_S)
    again = program(folder, tmp_path, **asked)
    assert again.end(LONG_S) == 0, again.lines
    line = next(line for line in again.lines if line.startswith("taken up"))
    number, step = (int(word) for word in line.split()[2:4])
    assert number == 1
    assert step >= 9
    check(tmp_path, calm, {1: (step,)})


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_one_ctrl_c_saves_before_it_leaves(
    folder: Path, tmp_path: Path, calm: list[dict[str, Any]], runner: str
) -> None:
    one = program(folder, tmp_path, runner=runner)
    wait_for_step(tmp_path, 0, 2)
    one.interrupt()
    assert one.end(LONG_S) == 130, one.lines
    (kept,) = (tmp_path / "mine" / "artefacts").glob(f"*/{CHECKPOINT}")
    last = max(step for _, step in steps_done(tmp_path / "log")[0])
    assert last < STEPS // 2, "no rung was there to save anything"
    again = program(folder, tmp_path, runner=runner)
    assert again.end(LONG_S) == 0, again.lines
    assert f"taken up 0 {last} " in again.lines
    check(tmp_path, calm, {0: (last,)})
    assert not kept.exists()
