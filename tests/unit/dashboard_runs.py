"""Made-up runs for the tests of the report: every status, nasty texts, one to four objectives, any size."""

from __future__ import annotations

import math
import random
from importlib import import_module

from autopeft.domain.budget import Budget, Spent
from autopeft.domain.candidate import Candidate, Insertion, Setting
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory, Rung
from autopeft.domain.objective import Objective
from autopeft.domain.results import Front, Provenance, RunRecord, RunResults, TaskInfo, score
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Failure, FailureReason, Trial, TrialStatus

SCRIPT = "<script>alert(1)</script>"
MIB = 2**20
LIMIT = 420 * MIB
LAYERS = 6
BEGAN = 1_790_000_000.0
FAILURES = {
    TrialStatus.INFEASIBLE: (FailureReason.OVER_LIMIT, "Needs more than the limit of 420 MiB."),
    TrialStatus.INVALID: (FailureReason.NOT_FINITE, "accuracy is NaN."),
    TrialStatus.CRASHED: (FailureReason.EXCEPTION, f"ValueError: bad row {SCRIPT} & <b>more</b>"),
    TrialStatus.LOST: (FailureReason.WORKER_DIED, "The worker died three times."),
}
KINDS = (
    [TrialStatus.COMPLETE] * 14
    + [TrialStatus.INFEASIBLE] * 3
    + [TrialStatus.CRASHED, TrialStatus.INVALID, TrialStatus.STOPPED_EARLY, TrialStatus.LOST, TrialStatus.CANCELLED]
)
EVERY_STATUS = 40


def objectives(*names: str) -> tuple[Objective, ...]:
    """Objectives of this project by name."""
    return tuple(import_module(f"autopeft.objectives.{name}").objective for name in names)


def layout(layers: int = LAYERS) -> ModelLayout:
    """A small encoder with two linear modules per layer."""
    return ModelLayout(
        model_type="bert",
        hidden_size=384,
        heads=12,
        kv_heads=12,
        layers=tuple(
            LayerLayout(
                index=index,
                path=f"encoder.layer.{index}",
                modules=tuple(
                    ModuleLayout(role=role, path=f"encoder.layer.{index}.{role}", in_features=384, out_features=384)
                    for role in (Role.QUERY, Role.VALUE)
                ),
            )
            for index in range(layers)
        ),
        head_paths=("classifier",),
        parameters=22_700_000,
        weights_bytes=90 * MIB,
    )


def record(names: tuple[str, ...], name: str = "docs-demo", max_memory: int | None = LIMIT) -> RunRecord:
    return RunRecord(
        name=name,
        spec=SearchSpec(name=name, objectives=names, max_memory=max_memory, budget=Budget(trials=EVERY_STATUS), seed=1),
        layout=layout(),
        task=TaskInfo(
            kind="classification",
            labels=("mail", "web", "asyncio", "xml", "logging", "testing", "importlib", "parallel"),
            metric="accuracy",
            metrics=("accuracy", "f1"),
            rows={"train": 1560, "validation": 480, "test": 480},
            majority_share=0.135,
        ),
        provenance=Provenance(
            versions={"python": "3.11.2", "torch": "2.13.0", "peft": "0.21.2", "autopeft": "0.1.0"},
            machine="2 cores, no GPU",
            data_fingerprint="6f1c0a9be2d4487a",
            model_fingerprint="19bd77c2a0f3e651",
        ),
        created_at=BEGAN,
    )


def results(
    count: int = EVERY_STATUS,
    names: tuple[str, ...] = ("accuracy", "train_peak_bytes"),
    kinds: list[TrialStatus] | None = None,
    seed: int = 3,
    max_memory: int | None = LIMIT,
    nasty: bool = True,
) -> RunResults:
    """A run of `count` trials whose statuses are drawn from `kinds`; front points carry a test score."""
    draw = random.Random(seed)
    scores, drawn = objectives(*names), list(kinds or KINDS)
    # Every kind comes once before any comes twice, so that a run of 40 holds them all.
    first = list(dict.fromkeys(drawn))
    statuses = [TrialStatus.COMPLETE if TrialStatus.COMPLETE in first else first[0], *first]
    statuses += [draw.choice(drawn) for _ in range(count)]
    trials = [_trial(draw, number, statuses[number], nasty) for number in range(count)]
    members = Front.of(scores, [score(trial, scores) for trial in trials]).numbers
    scored = tuple(score(_tested(draw, trial) if trial.number in members else trial, scores) for trial in trials)
    seconds = sum(trial.seconds for trial in trials)
    ended = sum(trial.status.ended for trial in trials)
    return RunResults(
        record=record(names, max_memory=max_memory),
        budget=Budget(trials=max(count, 1)),
        spent=Spent(trials=ended, seconds=seconds / 2),
        objectives=scores,
        trials=scored,
        front=Front.of(scores, scored),
        importance=_importance(names) if statuses[:count].count(TrialStatus.COMPLETE) >= 8 else {},
    )


def _trial(draw: random.Random, number: int, status: TrialStatus, nasty: bool) -> Trial:
    variant = draw.choice(["lora", "rslora", "dora", "pissa"])
    rank, start = draw.choice([1, 2, 4, 8, 16, 32, 64]), draw.randrange(LAYERS)
    rate = 10 ** draw.uniform(-4.5, -2)
    modules = draw.choice(["attention", "attention+ffn", "all"])
    parameters: dict[str, Setting] = {
        "variant": variant,
        "rank": rank,
        "modules": modules,
        "first_layer": start,
        "learning_rate": rate,
        "rank_dropout": draw.random() < 0.5,
    }
    if variant != "pissa":
        parameters["alpha_ratio"] = draw.choice([0.5, 1.0, 2.0])
        parameters["dropout"] = round(draw.uniform(0, 0.3), 3)
    if nasty:
        parameters["target"] = draw.choice(["query,value", f"<img src=x onerror=alert(2)>{SCRIPT}", "a & b"])
    layers = tuple(range(start, LAYERS))
    candidate = Candidate(
        insertions=(
            Insertion(
                method="lora",
                layers=layers,
                modules=("attention.query", "attention.value"),
                settings={"variant": variant, "rank": rank},
            ),
        ),
        learning_rate=rate,
    )
    width = {"attention": 1.0, "attention+ffn": 1.8, "all": 2.6}[modules]
    size = len(layers) * width
    peak = int((205 + 22 * size + 1.1 * rank * size / 2 + (40 if variant == "dora" else 0)) * MIB)
    quality = 0.42 + 0.05 * math.log1p(size) + 0.028 * math.log2(rank + 1) - 0.09 * (math.log10(rate) + 3.1) ** 2
    quality = round(min(0.74, max(0.11, quality + draw.gauss(0, 0.018))) * 480) / 480
    if status is TrialStatus.COMPLETE and peak > LIMIT:
        peak = LIMIT - draw.randrange(60 * MIB)
    if status is TrialStatus.INFEASIBLE:
        peak = int(LIMIT * draw.uniform(1.02, 1.9))
    began = BEGAN + 20.0 * number + draw.uniform(0, 5)
    seconds = draw.uniform(14, 34)
    return Trial(
        number=number,
        candidate=candidate,
        parameters=parameters,
        seed=draw.randrange(2**31),
        status=status,
        attempt=1,
        measurements=_measurements(draw, status, quality, peak, size, rank, seconds),
        failure=_failure(draw, status, peak),
        worker=f"worker-{number % 2}",
        created_at=began,
        started_at=began if status is not TrialStatus.PENDING else None,
        finished_at=began + seconds if status.ended else None,
        seconds=seconds if status.ended else 0.0,
    )


def _measurements(
    draw: random.Random, status: TrialStatus, quality: float, peak: int, size: float, rank: int, seconds: float
) -> Measurements | None:
    if status is TrialStatus.INFEASIBLE and draw.random() < 0.6:
        return Measurements(train_peak=PeakMemory(live_bytes=peak, source=MemorySource.PREDICTED))
    if status is TrialStatus.INVALID:
        return Measurements(quality={"accuracy": math.nan})
    if status not in (TrialStatus.COMPLETE, TrialStatus.STOPPED_EARLY):
        return None
    whole = status is TrialStatus.COMPLETE
    rungs = [(49, 0.82)] + ([(98, 1.0)] if whole else [])
    return Measurements(
        quality={"accuracy": quality, "f1": quality - 0.01} if whole else {"accuracy": quality * rungs[-1][1]},
        rungs=tuple(
            Rung(
                step=step, planned_steps=98, quality={"accuracy": quality * share}, train_loss=2.1 - share, train_s=8.0
            )
            for step, share in rungs
        ),
        steps=rungs[-1][0],
        planned_steps=98,
        train_s=seconds * 0.8,
        latency_s=0.0004 + 0.0001 * size,
        trainable_parameters=int(2 * 384 * rank * size) + 3080,
        head_parameters=3080,
        total_parameters=22_700_000,
        adapter_bytes=int(2 * 384 * rank * size) * 4 + 13_000,
        train_peak=PeakMemory(live_bytes=peak, source=MemorySource.TRACKED),
        infer_peak=PeakMemory(live_bytes=120 * MIB, source=MemorySource.TRACKED),
        inserted_modules=("encoder.layer.0.attention.self.query",),
        device="cpu",
        dtype="float32",
    )


def _failure(draw: random.Random, status: TrialStatus, peak: int) -> Failure | None:
    if status not in FAILURES:
        return None
    reason, text = FAILURES[status]
    violation = peak / LIMIT - 1 if status is TrialStatus.INFEASIBLE and draw.random() < 0.5 else None
    detail = f"Traceback (most recent call last):\n  File <stdin>\n{text}" if status is TrialStatus.CRASHED else ""
    return Failure(reason=reason, text=text, detail=detail, violation=violation)


def _tested(draw: random.Random, trial: Trial) -> Trial:
    measured = trial.measurements
    quality = measured.quality["accuracy"] if measured else 0.0
    test = round((quality - draw.uniform(-0.005, 0.03)) * 480) / 480
    return trial.model_copy(update={"test_quality": {"accuracy": test, "f1": test - 0.01}})


def _importance(names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    base = {"learning_rate": 0.46, "rank": 0.22, "first_layer": 0.17, "modules": 0.1, "variant": 0.05}
    turned = dict(zip(base, [0.02, 0.31, 0.38, 0.24, 0.05], strict=True))
    return {name: dict(base if index == 0 else turned) for index, name in enumerate(names)}
