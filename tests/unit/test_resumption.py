"""When a trial saves, and what it goes on from: never from what it cannot trust."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import CHECKPOINT, TrialStatus
from autopeft.evaluate import checkpoint, resumption
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.resumption import Checkpoints
from autopeft.evaluate.untouched import Untouched
from tests.unit.evaluate_trials import opened, spec_of, task_of
from tests.unit.interrupted_trials import Attempt, attempt, comparable, files

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resumption")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[TorchEvaluator]:
    evaluator = opened(spec_of(folder, training={"steps": STEPS}))
    yield evaluator
    evaluator.close()


@pytest.fixture(scope="module")
def calm(shared: TorchEvaluator, folder: Path) -> Attempt:
    """The trial that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        return attempt(patch, shared, task_of(shared, folder, 9))


def left(monkeypatch: pytest.MonkeyPatch, evaluator: TorchEvaluator, folder: Path, after: int = 2) -> EvaluationTask:
    """A task that was broken off after some steps."""
    task = task_of(evaluator, folder)
    assert attempt(monkeypatch, evaluator, task, after).outcome is None
    assert list(files(task)) == [CHECKPOINT]
    return task


def check_anew(found: Attempt, calm: Attempt, reason: str) -> None:
    assert found.taken_up is not None
    assert (found.taken_up.step, found.taken_up.planned_steps) == (0, STEPS)
    assert reason in found.taken_up.problem
    assert found.steps == list(range(1, STEPS + 1))
    assert found.losses == calm.losses
    assert comparable(found.outcome) == comparable(calm.outcome)
    assert found.outcome is not None
    assert found.outcome.measurements is not None
    assert found.outcome.measurements.checkpoint_problem == found.taken_up.problem
    assert found.outcome.measurements.resumed_at == ()
    assert not found.outcome.recycle_worker


def test_a_damaged_checkpoint_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt
) -> None:
    draw = random.Random(3)
    task = left(monkeypatch, shared, tmp_path)
    path = Path(task.artefact_dir) / CHECKPOINT
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[draw.randrange(len(whole))] ^= 4
    for content in (whole[: draw.randrange(len(whole))], bytes(flipped)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        check_anew(attempt(monkeypatch, shared, task), calm, "its checkpoint was not used: it is damaged")
        assert CHECKPOINT not in files(task)
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("what", ["candidate", "seed", "recipe", "version"])
def test_a_checkpoint_of_something_else_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, shared: TorchEvaluator, tmp_path: Path, calm: Attempt, what: str
) -> None:
    other = shared
    task = task_of(shared, tmp_path)
    with monkeypatch.context() as patch:
        if what == "recipe":
            other = opened(spec_of(folder, training={"steps": STEPS, "clip_norm": 0.5}))
        elif what == "version":
            patch.setattr(resumption, "version", lambda library: "7" if library == "peft" else version(library))
            other = opened(spec_of(folder, training={"steps": STEPS}))
    foreign = task_of(other, tmp_path, **({"rank": 2} if what == "candidate" else {}))
    foreign = foreign.model_copy(update={"seed": 12 if what == "seed" else task.seed})
    assert attempt(monkeypatch, other, foreign, 2).outcome is None
    check_anew(attempt(monkeypatch, shared, task), calm, "it is of another candidate, recipe")


def test_what_was_put_in_otherwise_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt
) -> None:
    task = left(monkeypatch, shared, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Untouched, "frozen_additions", lambda *_: "other")
        found = attempt(patch, shared, task)
    check_anew(found, calm, "what was put into the model is not what it was")


def test_a_state_that_does_not_fit_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt
) -> None:
    """As another version of a library might leave one: half of it is loaded when that shows."""
    task = left(monkeypatch, shared, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "load_state_dict", lambda *_: {}["exp_avg"])
        found = attempt(patch, shared, task)
    check_anew(found, calm, "exp_avg")
    assert shared._bench.untouched.differences() == []


def test_a_stopped_trial_keeps_its_checkpoint_and_can_be_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt
) -> None:
    task = task_of(shared, tmp_path)
    first = attempt(monkeypatch, shared, task, stop_at=STEPS // 2)
    assert first.outcome is not None
    assert first.outcome.status is TrialStatus.STOPPED_EARLY
    assert list(files(task)) == [CHECKPOINT]
    second = attempt(monkeypatch, shared, task)
    assert second.steps == list(range(STEPS // 2 + 1, STEPS + 1))
    assert first.rungs + second.rungs != first.rungs
    assert [rung.step for rung in second.rungs] == [STEPS], "what was reported is not reported again"
    assert first.losses + second.losses == calm.losses
    assert comparable(second.outcome) == comparable(calm.outcome)


def test_a_trial_that_is_left_at_a_rung_goes_on_behind_it(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt
) -> None:
    """Also where another trial was trained meanwhile, as by a search that lets only the best of some go on."""
    task = task_of(shared, tmp_path)
    first = attempt(monkeypatch, shared, task, close_at=STEPS // 2)
    assert first.outcome is None
    assert [rung.step for rung in first.rungs] == [STEPS // 2]
    assert shared._bench.untouched.differences() == []
    attempt(monkeypatch, shared, task_of(shared, tmp_path, 1, rank=2))
    second = attempt(monkeypatch, shared, task)
    assert second.taken_up is not None
    assert second.taken_up.step == STEPS // 2
    assert [rung.step for rung in second.rungs] == [STEPS]
    assert first.losses + second.losses == calm.losses
    assert comparable(second.outcome) == comparable(calm.outcome)


@pytest.mark.parametrize("end", ["stop_at", "close_at"])
def test_where_a_rung_was_not_worth_saving_it_is_saved_when_the_trial_ends_there(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt, end: str
) -> None:
    monkeypatch.setattr(Checkpoints, "worth", lambda _: False)
    whole = task_of(shared, tmp_path, 1)
    written = []
    write = Checkpoints.write

    def watched(self: Checkpoints, state: Callable[[], Mapping[str, Any]]) -> None:
        written.append(self)
        write(self, state)

    monkeypatch.setattr(Checkpoints, "write", watched)
    assert comparable(attempt(monkeypatch, shared, whole).outcome) == comparable(calm.outcome)
    assert not written
    task = task_of(shared, tmp_path)
    attempt(monkeypatch, shared, task, **{end: STEPS // 2})  # type: ignore[arg-type]
    assert len(written) == 1
    found = attempt(monkeypatch, shared, task)
    assert found.steps[0] == STEPS // 2 + 1
    assert comparable(found.outcome) == comparable(calm.outcome)


@pytest.mark.parametrize("fault", [ZeroDivisionError("by hand"), MemoryError()])
def test_a_trial_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, fault: Exception
) -> None:
    task = left(monkeypatch, shared, tmp_path)

    def broken(*_: Any) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr("autopeft.evaluate.trial_run.TrialRun._check_memory", broken)
        found = attempt(patch, shared, task)
    assert found.outcome is not None
    assert found.outcome.status in (TrialStatus.CRASHED, TrialStatus.INFEASIBLE)
    assert not Path(task.artefact_dir).exists()


def test_without_room_on_the_disk_a_trial_goes_on_without_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    found = attempt(monkeypatch, shared, task_of(shared, tmp_path))
    assert comparable(found.outcome) == comparable(calm.outcome)
    assert found.outcome is not None
    assert found.outcome.measurements is not None
    assert "no checkpoint could be written: it takes" in found.outcome.measurements.checkpoint_problem


def test_a_disk_that_is_full_while_one_is_written_costs_the_checkpoint_and_not_the_trial(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, calm: Attempt
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write = checkpoint.save_file

    def limited(*arguments: Any, **more: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # python gets an error instead of a signal
        try:
            write(*arguments, **more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(checkpoint, "save_file", limited)
    task = task_of(shared, tmp_path)
    found = attempt(monkeypatch, shared, task, leave_after=2)
    assert found.outcome is None
    assert list(Path(task.artefact_dir).iterdir()) == []
    found = attempt(monkeypatch, shared, task)
    assert found.losses == calm.losses
    assert comparable(found.outcome) == comparable(calm.outcome)
    assert found.outcome is not None
    assert found.outcome.measurements is not None
    assert "no checkpoint could be written: " in found.outcome.measurements.checkpoint_problem


def test_where_none_are_asked_for_none_are_written(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    evaluator = opened(spec_of(folder, training={"steps": 2}, checkpoint_s=None))
    task = task_of(evaluator, tmp_path)
    stopped = attempt(monkeypatch, evaluator, task, leave_after=1, stop_at=1)
    assert stopped.outcome is not None
    assert not Path(task.artefact_dir).exists()


def test_how_often_a_trial_saves_is_no_part_of_what_a_search_is(folder: Path) -> None:
    plain = spec_of(folder)
    assert plain.digest == plain.model_copy(update={"checkpoint_s": 1.0}).digest
    assert plain.checkpoint_s == 60.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_checkpoint_is_due_after_the_time_asked_for_and_later_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path
) -> None:
    clock = Clock()
    monkeypatch.setattr(resumption, "time", clock)
    found = Checkpoints(task_of(shared, tmp_path), "recipe", 60.0)

    def slowly() -> dict[str, Any]:
        clock.now += 9.0
        return {}

    assert not found.due()
    assert found.worth(), "what it takes is not known yet"
    clock.now += 59.0
    assert not found.due()
    clock.now += 1.0
    assert found.due()
    found.write(slowly)
    clock.now += 9.0 / 0.05 - 1.0
    assert not found.due(), "5 % of the time"
    assert not found.worth(), "at a rung neither"
    clock.now += 1.1
    assert found.due()
    assert found.worth()
    found.write(dict)
    clock.now += 60.0
    assert found.due()


def test_a_checkpoint_before_leaving_takes_no_longer_than_a_step_or_two_seconds(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path
) -> None:
    clock = Clock()
    monkeypatch.setattr(resumption, "time", clock)
    found = Checkpoints(task_of(shared, tmp_path), "recipe", 60.0)
    assert found.quick(lambda: 1 << 20, 0.01)
    assert not found.quick(lambda: 10 << 30, 0.01)
    assert found.quick(lambda: 10 << 30, 200.0)

    def slowly() -> dict[str, Any]:
        clock.now += 5.0
        return {}

    found.write(slowly)
    assert not found.quick(lambda: 1 << 20, 4.0), "what the last one took counts"
    assert found.quick(lambda: 1 << 20, 6.0)
