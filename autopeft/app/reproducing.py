"""Training one recipe from scratch, beside what its search measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from autopeft.app.folder import check_writable
from autopeft.app.planning import decide_resources, evaluator_of
from autopeft.cluster.attempt import Attempt
from autopeft.cluster.interruption import Interrupted, Interruption
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.events import Notice, OnEvent, RungReached, TrialTakenUp, ignore
from autopeft.domain.measurements import Rung
from autopeft.domain.ports import EvaluationTask, Evaluator
from autopeft.domain.spec import ResourceSpec
from autopeft.domain.trial import CHECKPOINT, UNFINISHED, Outcome, TrialStatus
from autopeft.evaluate.inspection import devices, inspect_run
from autopeft.export.recipe import Recipe
from autopeft.plugins import locate


@dataclass(frozen=True)
class Reproduction:
    """What training a recipe gave."""

    outcome: Outcome
    test_quality: dict[str, float] | None
    """None where the data has no test split or the training did not complete."""
    folder: Path
    seconds: float


def train(recipe: Recipe, out: Path, on_event: OnEvent = ignore) -> Reproduction:
    """Train a recipe's candidate with its seed and save the adapter in `out`.

    Where an earlier call was killed or interrupted, this one goes on from the checkpoint that it left in `out`.

    Raises:
        UserError: where model or data cannot be used, or `out` holds something else.
        KeyboardInterrupt: after Ctrl-C, when a checkpoint is saved if that is quick.
    """
    if out.exists() and (not out.is_dir() or any(not _is_left(path) for path in out.iterdir())):
        raise UserError(Problem("--out", f"{out} is not an empty folder", "", "Choose another."))
    check_writable(out.resolve().parent)
    began = time.monotonic()
    spec = recipe.spec()
    inspection = inspect_run(spec)
    notices = list(inspection.notices)
    if inspection.data_fingerprint != recipe.expected.data_fingerprint:
        notices.append("The data is not the recipe's (its fingerprint differs), so scores are not comparable.")
    if inspection.model_fingerprint != recipe.expected.model_fingerprint:
        notices.append("The base model is not the recipe's (its fingerprint differs), so scores are not comparable.")
    for text in notices:
        on_event(Notice(text))
    reference = evaluator_of(spec, decide_resources(ResourceSpec(runner="local"), devices()))
    evaluator: Evaluator = locate(reference.target)(**reference.arguments)
    try:
        task = EvaluationTask(
            number=0, attempt=1, seed=recipe.seed, candidate=recipe.candidate, artefact_dir=str(out.resolve())
        )
        outcome = evaluated(evaluator, task, on_event)
        scored = outcome.status is TrialStatus.COMPLETE and "test" in inspection.task.rows
        test = evaluator.score_test(out) if scored else None
    except Interrupted:
        if (out / CHECKPOINT).exists():
            on_event(Notice("Interrupted; the same command goes on from the last checkpoint."))
        raise
    finally:
        evaluator.close()
    return Reproduction(outcome, test, out, time.monotonic() - began)


def _is_left(path: Path) -> bool:
    """Whether a training that ended too soon left this."""
    return path.name == CHECKPOINT or path.name.startswith(UNFINISHED)


def evaluated(evaluator: Evaluator, task: EvaluationTask, on_event: OnEvent = ignore) -> Outcome:
    """Run one evaluation to its end, or to the first Ctrl-C."""
    attempt = Attempt(evaluator, task)
    with Interruption() as interruption:
        try:
            while True:
                with interruption.leaving_at_once(attempt.pause):
                    step = attempt.advance()
                if isinstance(step, Outcome):
                    return step
                for number, report in step.items():
                    on_event(RungReached(number, report) if isinstance(report, Rung) else TrialTakenUp(number, report))
        finally:
            attempt.close()
