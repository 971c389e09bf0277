"""Recording a benchmark table: configurations of a space, each trained with several seeds by the ordinary evaluator."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from autopeft.app.planning import Plan, machine, make_plan, versions
from autopeft.cluster.attempt import Attempt
from autopeft.domain.candidate import Candidate, Setting, digest_of
from autopeft.domain.measurements import Measurements, PeakMemory, Rung
from autopeft.domain.objective import Direction
from autopeft.domain.ports import EvaluationTask, Evaluator, EvaluatorRef
from autopeft.domain.recording import RecordedRung, RecordedTable, RecordedTraining, RecordingFacts
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Outcome
from autopeft.evaluate.inspection import devices
from autopeft.plugins import locate
from autopeft.search.filling import fill
from autopeft.store.journal import Journal
from autopeft.store.recorded import read_table, write_table

_ARTEFACT = "adapter"
_NUMBERS = (
    "planned_steps",
    "train_tokens",
    "train_mean_bytes",
    "adapter_bytes",
    "trainable_parameters",
    "head_parameters",
    "total_parameters",
    "kept_parameters",
    "latency_s",
)


@dataclass(frozen=True)
class Recording:
    """What a recording has come to."""

    table: Path
    configs: int
    """Whole configurations in the table."""
    asked: int
    seconds: float
    """Processor seconds of all its trainings."""
    exhausted: bool
    """Whether the space has no more configurations than these."""


def record(
    spec: SearchSpec,
    out: Path,
    *,
    configs: int,
    seeds: int,
    command: str = "",
    told: Callable[[RecordedTraining], None] = lambda training: None,
    evaluator: EvaluatorRef | None = None,
    plan: Callable[[SearchSpec], Plan] = make_plan,
) -> Recording:
    """Train `configs` configurations of the spec's space with `seeds` seeds each, and write them to `out`.

    Goes on with what a killed process left: `out` with the ending `.journal.jsonl` holds every finished training.
    What the table holds and it lacks is taken over, so that the table alone is enough. The table is written anew after
    every configuration, and holds whole configurations only.

    Args:
        spec: Model, data, space and recipe; its rungs are recorded.
        out: The Parquet file.
        configs: How many configurations the table shall have; more than before go on in the same order.
        seeds: Trainings of each.
        command: What makes the table, kept in it.
        told: Called with every new training.
        evaluator: Takes the place of real training, for tests.
        plan: Takes the place of inspecting model and data.

    Raises:
        UserError: for mistakes in the spec, or a table that was begun otherwise.
    """
    planned = plan(spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = list(islice(fill(planned.space, spec.seed), configs))
    reference = evaluator or planned.evaluator()
    earlier = read_table(out) if out.exists() else None
    with (
        Journal(out.with_suffix(".journal.jsonl"), _facts(planned, seeds, command), earlier) as journal,
        tempfile.TemporaryDirectory() as folder,
    ):
        bench = _Bench(reference, Path(folder) / _ARTEFACT)
        facts = journal.facts.model_copy(update={"command": command})
        try:
            for config, (parameters, candidate) in enumerate(drawn):
                missing = [seed for seed in range(seeds) if (config, seed) not in journal.done]
                for seed in missing:
                    training = bench.train(config, seed, parameters, candidate)
                    journal.add(training)
                    told(training)
                if missing:
                    write_table(out, RecordedTable.of(facts, journal.trainings))
        finally:
            bench.close()
            table = RecordedTable.of(facts, journal.trainings)
            write_table(out, table)
        seconds = sum(one.cpu_s for one in journal.trainings)
    return Recording(out, len(table.trainings), configs, seconds, len(drawn) < configs)


class _Bench:
    """Trains one configuration after another; builds the evaluator when it is first needed, and anew when spoilt."""

    def __init__(self, reference: EvaluatorRef, artefact: Path) -> None:
        self._reference = reference
        self._artefact = artefact
        self._evaluator: Evaluator | None = None

    def train(self, config: int, seed: int, parameters: dict[str, Setting], candidate: Candidate) -> RecordedTraining:
        if self._evaluator is None:
            self._evaluator = locate(self._reference.target)(**self._reference.arguments)
        task = EvaluationTask(
            number=config, attempt=1, seed=seed, candidate=candidate, artefact_dir=str(self._artefact)
        )
        shutil.rmtree(self._artefact, ignore_errors=True)  # no training goes on with a checkpoint of another
        clock, rungs = _Clock(), list[RecordedRung]()
        attempt = Attempt(self._evaluator, task)
        try:
            for step in _steps(attempt):
                wall_s, cpu_s = clock.read()
                if isinstance(step, Rung):
                    evaluate_s = (rungs[-1].evaluate_s if rungs else 0.0) + step.evaluate_s
                    rungs.append(_rung(step, evaluate_s, wall_s, cpu_s))
                else:
                    outcome = step
        finally:
            attempt.close()
        if outcome.recycle_worker:
            self.close()
        return RecordedTraining(
            config=config,
            seed=seed,
            parameters=parameters,
            candidate=candidate,
            status=outcome.status,
            reason=outcome.failure.reason if outcome.failure else None,
            rungs=tuple(rungs),
            wall_s=wall_s,
            cpu_s=cpu_s,
            **_numbers(outcome.measurements or Measurements()),
        )

    def close(self) -> None:
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None:
            evaluator.close()


class _Clock:
    """Seconds since it was made, of the wall's clock and of this process on the processor."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        wall, cpu = self._began
        return round(time.perf_counter() - wall, 4), round(time.process_time() - cpu, 4)


def _steps(attempt: Attempt) -> Iterator[Rung | Outcome]:
    """The rungs, and at last the outcome."""
    while True:
        step = attempt.advance()
        if isinstance(step, Outcome):
            yield step
            return
        yield from (report for report in step.values() if isinstance(report, Rung))


def _rung(rung: Rung, evaluate_s: float, wall_s: float, cpu_s: float) -> RecordedRung:
    return RecordedRung(
        step=rung.step,
        quality={name: round(value, 6) for name, value in rung.quality.items()},
        train_loss=round(rung.train_loss, 6),
        train_s=round(rung.train_s, 4),
        evaluate_s=round(evaluate_s, 4),
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def _numbers(found: Measurements) -> dict[str, Any]:
    def live(peak: PeakMemory | None) -> int | None:
        return None if peak is None else peak.live_bytes

    return {
        **{name: getattr(found, name) for name in _NUMBERS},
        "train_peak_bytes": live(found.train_peak),
        "estimation_peak_bytes": live(found.estimation_peak),
        "infer_peak_bytes": live(found.infer_peak),
    }


def _facts(plan: Plan, seeds: int, command: str) -> RecordingFacts:
    spec, inspection = plan.spec, plan.inspection
    names = ("source", "train", "validation", "test")
    space = plan.space_as_written()
    headline = next((one for one in plan.objectives if one.name == inspection.task.metric), None)
    on_cpu = not plan.resources.gpus_per_worker
    return RecordingFacts(
        space=space,
        space_digest=digest_of(space),
        parameters=plan.space.parameters,
        model=Path(spec.model.source).name,
        model_fingerprint=inspection.model_fingerprint,
        data=_data_name(spec),
        data_fingerprint=inspection.data_fingerprint,
        rows=inspection.task.rows,
        majority_share=inspection.task.majority_share,
        metric=inspection.task.metric,
        higher_is_better=headline is None or headline.direction is Direction.MAXIMIZE,
        recipe={
            "training": spec.training.model_dump(mode="json"),
            "data": spec.data.model_dump(mode="json", exclude=set(names), exclude_defaults=True),
            "dtype": spec.model.dtype,
        },
        rungs=spec.training.rungs,
        seed=spec.seed,
        seeds=seeds,
        batch_rows=spec.training.batch_size * spec.training.gradient_accumulation,
        device="cpu" if on_cpu else "cuda",
        clock="cpu" if on_cpu else "wall",
        versions=versions(),
        machine=machine(devices()),
        command=command,
    )


def _data_name(spec: SearchSpec) -> str:
    """The data's name without the folders of this machine."""
    data = spec.data
    if data.source is not None:
        return Path(data.source).name + (f"/{data.subset}" if data.subset else "")
    train = Path(data.train or "")
    return train.parent.name or train.stem
