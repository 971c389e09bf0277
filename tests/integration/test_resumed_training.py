"""`autopeft train` that was killed goes on by the same command."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from autopeft.app.reproducing import train
from autopeft.cluster import interruption
from autopeft.domain.errors import UserError
from autopeft.domain.events import Event, Notice, RungReached, TrialTakenUp
from autopeft.domain.measurements import TakenUp
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import CHECKPOINT, UNFINISHED
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.tally import Tally
from autopeft.evaluate.train import Training
from autopeft.export.recipe import Recipe
from tests.unit.evaluate_trials import opened, spec_of, task_of
from tests.unit.interrupted_trials import attempt, comparable


def recipe_of(folder: Path) -> tuple[Recipe, EvaluationTask, TorchEvaluator]:
    """A recipe of six steps, and the same as a task."""
    spec = spec_of(folder, training={"steps": 6})
    evaluator = opened(spec)
    task = task_of(evaluator, folder)
    recipe = Recipe(
        model=spec.model,
        data=spec.data,
        training=spec.training,
        candidate=task.candidate,
        seed=task.seed,
        search_seed=spec.seed,
    )
    return recipe, task, evaluator


@pytest.mark.parametrize("moment", ["in a step", "between two"])
def test_ctrl_c_saves_and_the_same_call_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str) -> None:
    recipe, _, _ = recipe_of(tmp_path)
    calm = train(recipe, tmp_path / "calm")
    owner, name = {"in a step": (Training, "_step"), "between two": (Tally, "note")}[moment]
    former, calls, events = getattr(owner, name), 0, []

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return former(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        patch.setattr(interruption, "PATIENCE_S", 300.0)  # on a busy machine the first steps take seconds
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "out", events.append)
    assert events[-1:] == [Notice("Interrupted; the same command goes on from the last checkpoint.")]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [CHECKPOINT]
    made = train(recipe, tmp_path / "out", events.append)
    assert TrialTakenUp(0, TakenUp(step=2, planned_steps=6)) in events
    assert comparable(made.outcome) == comparable(calm.outcome)
    assert CHECKPOINT not in {path.name for path in (tmp_path / "out").iterdir()}


def test_a_training_goes_on_where_it_was_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe, task, evaluator = recipe_of(tmp_path)
    calm = train(recipe, tmp_path / "calm")
    out = tmp_path / "out"
    assert attempt(monkeypatch, evaluator, task.model_copy(update={"artefact_dir": str(out)}), 4).outcome is None
    (out / f"{UNFINISHED}0a1b2c3d").mkdir()
    events: list[Event] = []
    made = train(recipe, out, events.append)
    steps = [event for event in events if isinstance(event, TrialTakenUp | RungReached)]
    assert steps[0] == TrialTakenUp(0, TakenUp(step=4, planned_steps=6))
    assert [event.rung.step for event in steps[1:] if isinstance(event, RungReached)] == [6]
    assert comparable(made.outcome) == comparable(calm.outcome)
    assert made.test_quality == calm.test_quality
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "calm").iterdir()}
    (tmp_path / "other").mkdir()
    for name in (CHECKPOINT, "notes.txt"):
        (tmp_path / "other" / name).write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        train(recipe, tmp_path / "other")
