"""`autopeft train` that was killed goes on by the same command."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.app.reproducing import train
from autopeft.domain.errors import UserError
from autopeft.domain.events import Event, RungReached, TrialTakenUp
from autopeft.domain.measurements import TakenUp
from autopeft.domain.trial import CHECKPOINT, UNFINISHED
from autopeft.export.recipe import Recipe
from tests.unit.evaluate_trials import opened, spec_of, task_of
from tests.unit.interrupted_trials import attempt, comparable


def test_a_training_goes_on_where_it_was_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, training={"steps": 6})
    evaluator = opened(spec)
    task = task_of(evaluator, tmp_path)
    recipe = Recipe(
        model=spec.model,
        data=spec.data,
        training=spec.training,
        candidate=task.candidate,
        seed=task.seed,
        search_seed=spec.seed,
    )
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
