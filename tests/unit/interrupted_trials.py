"""Breaking a trial off after some steps, as a kill would, and taking it up again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.measurements import Rung, TakenUp
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import Outcome
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.tally import Tally
from autopeft.evaluate.train import Step

SECONDS = ("train_s", "evaluate_s", "latency_s", "setup_s", "estimation_s", "pruning_s")
OF_INTERRUPTIONS = ("resumed_at", "checkpoint_problem")


@dataclass
class Attempt:
    """What came of one attempt at a task."""

    outcome: Outcome | None = None
    """None where it was broken off."""
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    taken_up: TakenUp | None = None


def attempt(
    monkeypatch: pytest.MonkeyPatch,
    evaluator: TorchEvaluator,
    task: EvaluationTask,
    leave_after: int | None = None,
    stop_at: int | None = None,
    close_at: int | None = None,
    into: Attempt | None = None,
) -> Attempt:
    """Train; after the step `leave_after`, save and break off; stop the trial, or just leave it, at a rung.

    What is seen goes `into` this, also where an exception ends it.
    """
    found = Attempt() if into is None else into
    note = Tally.note

    def noted(self: Tally, step: Step) -> None:
        note(self, step)
        found.steps.append(step.number)
        found.losses.append(step.loss)
        if step.number == leave_after:
            evaluator.pause()

    with monkeypatch.context() as patch:
        patch.setattr(Tally, "note", noted)
        evaluation = evaluator.evaluate([task])
        try:
            reports = next(evaluation)
            while reports:
                report = reports[task.number]
                if isinstance(report, TakenUp):
                    found.taken_up = report
                else:
                    found.rungs.append(report)
                step = report.step if isinstance(report, Rung) else None
                if step is not None and step == close_at:
                    break
                stopped = step is not None and step == stop_at
                reports = evaluation.send(frozenset({task.number}) if stopped else frozenset())
            evaluation.close()
        except StopIteration as end:
            found.outcome = end.value[task.number]
    torch.rand(3)  # whatever runs in between
    return found


def in_pieces(
    monkeypatch: pytest.MonkeyPatch, evaluator: TorchEvaluator, task: EvaluationTask, *leave_after: int
) -> Attempt:
    """A trial that is broken off after each of these steps, and its attempts as one."""
    whole = Attempt()
    for number, after in enumerate((*leave_after, None)):
        part = attempt(monkeypatch, evaluator, task.model_copy(update={"attempt": number}), after)
        if number:
            assert part.taken_up == TakenUp(step=leave_after[number - 1], planned_steps=part_planned(evaluator))
        assert evaluator._bench.untouched.differences() == []
        whole.steps += part.steps
        whole.losses += part.losses
        whole.rungs += part.rungs
        whole.outcome = part.outcome
    return whole


def part_planned(evaluator: TorchEvaluator) -> int:
    """The planned steps of every trial."""
    steps = evaluator._bench.spec.training.steps
    assert steps is not None
    return steps


def comparable(outcome: Outcome | None) -> dict[str, Any]:
    """Everything that must not depend on interruptions or clocks."""
    assert outcome is not None
    assert outcome.measurements is not None, outcome.failure
    found = outcome.measurements.model_dump()
    for key in (*SECONDS, *OF_INTERRUPTIONS):
        del found[key]
    found["rungs"] = [{**rung, "train_s": 0, "evaluate_s": 0} for rung in found["rungs"]]
    return {**found, "status": outcome.status}


def files(task: EvaluationTask) -> dict[str, bytes]:
    """Everything in the trial's folder."""
    return {path.name: path.read_bytes() for path in Path(task.artefact_dir).iterdir()}


def check_same(
    monkeypatch: pytest.MonkeyPatch, evaluator: TorchEvaluator, task: EvaluationTask, *leave_after: int
) -> None:
    """A trial broken off after each of these steps gives the losses, measurements and files of one that is not."""
    other = task.model_copy(update={"artefact_dir": f"{task.artefact_dir}-whole"})
    calm = attempt(monkeypatch, evaluator, other)
    broken = in_pieces(monkeypatch, evaluator, task, *leave_after)
    assert calm.outcome is not None
    assert calm.outcome.failure is None, calm.outcome.failure
    assert calm.taken_up is None
    assert broken.steps == calm.steps == list(range(1, len(calm.steps) + 1)), "no step is done twice"
    assert broken.losses == calm.losses
    assert comparable(broken.outcome) == comparable(calm.outcome)
    assert broken.outcome is not None
    assert broken.outcome.measurements is not None
    assert broken.outcome.measurements.resumed_at == leave_after
    assert broken.outcome.measurements.checkpoint_problem == ""
    assert not broken.outcome.recycle_worker
    assert files(task) == files(other), "weights bit for bit, and no checkpoint is left"
