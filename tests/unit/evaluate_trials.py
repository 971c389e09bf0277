"""Opening an evaluator on a tiny model and running one trial through it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autopeft.domain.measurements import Rung
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Outcome
from autopeft.evaluate.pipeline import TorchEvaluator, open_evaluator
from tests.unit.evaluate_models import candidate_of, save_model, write_data

STEPS = 24


def spec_of(folder: Path, kind: str = "bert", **changes: Any) -> SearchSpec:
    if not (folder / kind).exists():
        save_model(folder / kind, kind)
    training = {"steps": STEPS, "batch_size": 8, "rungs": (0.5, 1.0), **changes.pop("training", {})}
    data = {**write_data(folder / "data"), **changes.pop("data", {})}
    return SearchSpec.model_validate(
        {"model": str(folder / kind), "data": data, "training": training, "seed": 7, **changes}
    )


def opened(spec: SearchSpec) -> TorchEvaluator:
    return open_evaluator(spec.model_dump(mode="json"), threads=1, device="cpu")


def task_of(evaluator: TorchEvaluator, folder: Path, number: int = 0, seed: int = 11, **changes: Any) -> EvaluationTask:
    rate = changes.pop("learning_rate", 5e-3)
    candidate = candidate_of(evaluator._bench.layout, **{"dropout": 0.1, **changes})
    return EvaluationTask(
        number=number,
        attempt=0,
        seed=seed,
        candidate=candidate.model_copy(update={"learning_rate": rate}),
        artefact_dir=str(folder / f"artefact-{number}"),
    )


def run(
    evaluator: TorchEvaluator, task: EvaluationTask, stop: Callable[[Rung], bool] = lambda _: False
) -> tuple[Outcome, list[Rung]]:
    evaluation, rungs = evaluator.evaluate([task]), []
    try:
        reached = next(evaluation)
        while True:
            rungs.append(reached[task.number])
            reached = evaluation.send(frozenset({task.number}) if stop(rungs[-1]) else frozenset())
    except StopIteration as end:
        return end.value[task.number], rungs
