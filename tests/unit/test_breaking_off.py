"""A trial killed anywhere, and not only between two steps, goes on from its last checkpoint as if nothing had been."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopeft.domain.candidate import Candidate, Pruning
from autopeft.domain.measurements import TakenUp
from autopeft.domain.ports import EvaluationTask
from autopeft.evaluate import artefact, checkpoint, resumption, trial_run
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.pruning.criteria import DEFAULTS
from autopeft.evaluate.pruning.phase import Estimation
from autopeft.evaluate.train import Training
from autopeft.evaluate.trial_run import TrialRun
from tests.unit.evaluate_trials import opened, spec_of, task_of
from tests.unit.interrupted_trials import Attempt, attempt, comparable, files
from tests.unit.policy_runs import insertion_of, policy_of

STEPS = 8
IST = policy_of("ist", interval=2, probes=2, trained=0.5, score_rate=30.0)
PRUNING = Pruning(criterion="light-peft", settings={**DEFAULTS, "heads": 0.25, "modules": 0.4, "estimation": 0.5})
"""The first 4 of 8 steps are the estimation."""


class Killed(BaseException):
    """What a process that is killed does not see; here it ends an attempt."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("breaking")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[TorchEvaluator]:
    evaluator = opened(spec_of(folder, training={"steps": STEPS, "gradient_accumulation": 2}, checkpoint_s=0))
    yield evaluator
    evaluator.close()


@pytest.fixture(autouse=True)
def _saving_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps are so short here that this is too much of the time.
    monkeypatch.setattr(resumption, "SHARE", math.inf)


def task(evaluator: TorchEvaluator, folder: Path, method: str = "lora", **more: Any) -> EvaluationTask:
    insertion = insertion_of(evaluator._bench.layout, method)
    insertion = insertion.model_copy(update={"settings": {**insertion.settings, "dropout": 0.1}})
    candidate = Candidate(insertions=(insertion,), learning_rate=5e-3, **more)
    return task_of(evaluator, folder).model_copy(update={"candidate": candidate})


def killed(
    monkeypatch: pytest.MonkeyPatch,
    evaluator: TorchEvaluator,
    task: EvaluationTask,
    owner: Any,
    name: str,
    calls: int,
) -> Attempt:
    """An attempt that ends in a call of a function; files stay as they were in that moment, and nothing else does."""
    path, snapshot = Path(task.artefact_dir), Path(f"{task.artefact_dir}-snapshot")
    former, seen = getattr(owner, name), 0

    def watched(*arguments: Any, **more: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen < calls:
            return former(*arguments, **more)
        if name == "save_file":
            Path(arguments[1]).write_bytes(b"half of it")
        elif owner is not os:
            former(*arguments, **more)
        if path.exists():
            shutil.copytree(path, snapshot)
        raise Killed

    found = Attempt()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, watched)
        with pytest.raises(Killed):
            attempt(patch, evaluator, task, into=found)
    assert seen == calls
    shutil.rmtree(path, ignore_errors=True)
    if snapshot.exists():
        snapshot.rename(path)
    assert evaluator._bench.untouched.differences() == []
    return found


@pytest.mark.parametrize(
    ("owner", "name", "calls", "done", "method", "more"),
    [
        # A step has two forward passes.
        pytest.param(Training, "_loss", 6, 2, "lora", {}, id="between the passes of a step"),
        pytest.param(Training, "_loss", 8, 3, "adalora", {}, id="while AdaLoRA shrinks"),
        pytest.param(Training, "_loss", 6, 2, "increlora", {}, id="while IncreLoRA grows"),
        # Two probes after every second step.
        pytest.param(Training, "_probe", 4, 4, "lora", {"policy": IST}, id="in a probe of IST"),
        pytest.param(Training, "_loss", 6, 2, "lora", {"pruning": PRUNING}, id="in the estimation"),
        pytest.param(Estimation, "prune", 1, 4, "lora", {"pruning": PRUNING}, id="in the pruning step"),
        pytest.param(Training, "_loss", 12, 5, "lora", {"pruning": PRUNING}, id="after the pruning step"),
        pytest.param(TrialRun, "_validate", 1, 3, "lora", {}, id="while it is validated"),
        pytest.param(TrialRun, "_validate", 2, 8, "lora", {}, id="while it is validated in the end"),
        pytest.param(checkpoint, "save_file", 3, 2, "lora", {}, id="while a checkpoint is written"),
        pytest.param(os, "replace", 3, 2, "lora", {}, id="before a checkpoint takes its place"),
        pytest.param(artefact, "save_file", 1, 8, "lora", {}, id="while the adapter is saved"),
    ],
)
def test_killed_in_the_middle(
    monkeypatch: pytest.MonkeyPatch,
    shared: TorchEvaluator,
    tmp_path: Path,
    owner: Any,
    name: str,
    calls: int,
    done: int,
    method: str,
    more: dict[str, Any],
) -> None:
    asked = task(shared, tmp_path, method, **more)
    calm_task = asked.model_copy(update={"artefact_dir": f"{asked.artefact_dir}-calm"})
    calm = attempt(monkeypatch, shared, calm_task)
    first = killed(monkeypatch, shared, asked, owner, name, calls)
    assert first.losses == calm.losses[: len(first.losses)]
    second = attempt(monkeypatch, shared, asked)
    assert second.taken_up == TakenUp(step=done, planned_steps=STEPS)
    assert second.losses == calm.losses[done:]
    assert comparable(second.outcome) == comparable(calm.outcome)
    assert second.outcome is not None
    assert second.outcome.measurements is not None
    assert second.outcome.measurements.resumed_at == (done,)
    assert files(asked) == files(calm_task)


@pytest.mark.parametrize("owner", [TrialRun, Training, trial_run])
def test_killed_while_it_is_taken_up(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, owner: Any
) -> None:
    """With the pruned model half or wholly made again: the next attempt has the same checkpoint."""
    name = {TrialRun: "_load", Training: "load", trial_run: "apply"}[owner]
    asked = task(shared, tmp_path, pruning=PRUNING)
    calm_task = asked.model_copy(update={"artefact_dir": f"{asked.artefact_dir}-calm"})
    calm = attempt(monkeypatch, shared, calm_task)
    killed(monkeypatch, shared, asked, Training, "_loss", 14)
    for _ in range(2):
        assert killed(monkeypatch, shared, asked, owner, name, 1).steps == []
    last = attempt(monkeypatch, shared, asked)
    assert last.taken_up == TakenUp(step=6, planned_steps=STEPS)
    assert last.losses == calm.losses[6:]
    assert comparable(last.outcome) == comparable(calm.outcome)
    assert files(asked) == files(calm_task)
