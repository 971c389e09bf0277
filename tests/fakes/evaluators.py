"""An evaluator that trains nothing: known values, with delays and faults where a test wants them."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory, Rung, TakenUp
from autopeft.domain.ports import Evaluation, EvaluationTask
from autopeft.domain.trial import CHECKPOINT, Failure, FailureReason, Outcome, TrialStatus

PLANNED_STEPS = 10


class FakeEvaluator:
    """Accuracy and memory grow with the rank; `faults` maps a trial number (as text) to what goes wrong.

    Faults: `nan`, `inf`, `missing` (of accuracy; `nan:train_peak_bytes` and so on of another), `raise`, `oom`, `exit`,
    `kill`, `kill-once` (the first attempt only), `sleep:SECONDS`, `stubborn` (sleeps through Ctrl-C), `recycle`,
    `no-outcome`. Candidates of a `burden` above `limit` run out of memory. One that is stopped at a rung leaves its
    rungs as a checkpoint, and another attempt trains no step of these again.
    """

    def __init__(
        self, faults: dict[str, str], delay_s: float, rungs: int, log: str | None, limit: float = math.inf
    ) -> None:
        self._faults = faults
        self._limit = limit
        self._delay_s = delay_s
        self._rungs = rungs
        self._log = log
        self.closed = False
        self._write(f"built {os.getpid()}")

    def evaluate(self, tasks: Sequence[EvaluationTask]) -> Evaluation:
        (task,) = tasks
        began = time.monotonic()
        fault = "oom" if burden(task.candidate) > self._limit else self._faults.get(str(task.number), "")
        self._write(f"began {task.number} {task.attempt} {os.getpid()}")
        measurements = known_measurements(task)
        checkpoint = Path(task.artefact_dir) / CHECKPOINT
        reached = (
            [Rung.model_validate(one) for one in json.loads(checkpoint.read_text())] if checkpoint.exists() else []
        )
        if reached:
            yield {task.number: TakenUp(step=reached[-1].step, planned_steps=PLANNED_STEPS)}
        for step in range(len(reached) + 1, self._rungs + 1):
            time.sleep(self._delay_s / max(1, self._rungs))
            rung = Rung(
                step=step * PLANNED_STEPS // self._rungs,
                planned_steps=PLANNED_STEPS,
                quality={"accuracy": measurements.quality["accuracy"] * step / self._rungs},
                train_loss=1.0 / step,
                train_s=time.monotonic() - began,
                train_peak=measurements.train_peak,
            )
            reached.append(rung)
            try:
                stop = yield {task.number: rung}
            except GeneratorExit:
                if step < self._rungs:
                    _save(checkpoint, reached)
                raise
            if task.number in stop and step < self._rungs:
                self._write(f"stopped {task.number} {step}")
                _save(checkpoint, reached)
                partial = measurements.model_copy(
                    update={"rungs": tuple(reached), "quality": rung.quality, "steps": rung.step}
                )
                return {task.number: Outcome(status=TrialStatus.STOPPED_EARLY, measurements=partial, seconds=0.1)}
        if self._rungs == 0:
            time.sleep(self._delay_s)
        measurements = measurements.model_copy(update={"rungs": tuple(reached)})
        outcome = _fault(fault, task, measurements)
        checkpoint.unlink(missing_ok=True)
        if outcome.status is TrialStatus.COMPLETE:
            folder = Path(task.artefact_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapter_model.safetensors").write_bytes(b"fake")
            (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        self._write(f"ended {task.number} {task.attempt}")
        outcome = outcome.model_copy(update={"seconds": time.monotonic() - began})
        return {} if fault == "no-outcome" else {task.number: outcome}

    def pause(self) -> bool:
        return False

    def score_test(self, artefact_dir: Path) -> dict[str, float]:
        (artefact_dir / "test_predictions.json").write_text(json.dumps([0, 1]))
        return {"accuracy": 0.5}

    def close(self) -> None:
        self.closed = True

    def _write(self, line: str) -> None:
        if self._log is not None:
            with open(self._log, "a") as file:
                file.write(line + "\n")


def _save(checkpoint: Path, reached: Sequence[Rung]) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(json.dumps([one.model_dump(mode="json") for one in reached]))


def burden(candidate: Candidate) -> float:
    """What stands for the memory that training needs: rank times layers, and half as much again for DoRA."""
    return sum(
        int(one.settings.get("rank", 1)) * len(one.layers) * (1.5 if one.method == "dora" else 1.0)
        for one in candidate.insertions
    )


def known_measurements(task: EvaluationTask) -> Measurements:
    """What a faultless trial of this task measures."""
    settings = task.candidate.insertions[0].settings if task.candidate.insertions else {}
    rank = int(settings.get("rank", 1))
    off = abs(math.log10(task.candidate.learning_rate) + 3.3)
    return Measurements(
        quality={"accuracy": round(0.9 - 0.3 / rank - 0.05 * off, 6)},
        steps=PLANNED_STEPS,
        planned_steps=PLANNED_STEPS,
        train_s=0.01,
        trainable_parameters=1000 * rank,
        adapter_bytes=4000 * rank,
        train_peak=PeakMemory(live_bytes=10_000_000 + 100_000 * rank, source=MemorySource.TRACKED),
    )


def build(
    faults: dict[str, str] | None = None,
    delay_s: float = 0.0,
    rungs: int = 0,
    log: str | None = None,
    limit: float = math.inf,
) -> FakeEvaluator:
    """Target of an `EvaluatorRef`."""
    return FakeEvaluator(faults or {}, delay_s, rungs, log, limit)


def build_never(**_: Any) -> FakeEvaluator:
    """Target of an `EvaluatorRef` that a person has to mend something for."""
    raise UserError(Problem("model", "there is none", "a model", "Name one."))


def _fault(fault: str, task: EvaluationTask, measurements: Measurements) -> Outcome:
    kind, _, detail = fault.partition(":")
    if kind in ("nan", "inf"):
        return Outcome(status=TrialStatus.COMPLETE, measurements=_spoilt(measurements, detail, float(kind)))
    if kind == "missing":
        return Outcome(status=TrialStatus.COMPLETE, measurements=_without(measurements, detail))
    if kind == "raise":
        raise ValueError("this candidate is cursed")
    if kind == "oom":
        text = "Out of memory: 2 GiB asked, 1 GiB free."
        failure = Failure(reason=FailureReason.OUT_OF_MEMORY, text=text)
        return Outcome(status=TrialStatus.INFEASIBLE, failure=failure, recycle_worker=True)
    if kind == "exit":
        os._exit(3)
    if kind == "kill" or (kind == "kill-once" and task.attempt == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(float(detail))
    if kind == "stubborn":
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(600)
    return Outcome(status=TrialStatus.COMPLETE, measurements=measurements, recycle_worker=kind == "recycle")


def _spoilt(measurements: Measurements, objective: str, value: float) -> Measurements:
    if objective in ("", "accuracy"):
        return measurements.model_copy(update={"quality": {"accuracy": value}})
    if objective == "train_s":
        return measurements.model_copy(update={"train_s": value})
    raise ValueError(f"{objective} cannot be {value}")


def _without(measurements: Measurements, objective: str) -> Measurements:
    fields = {"train_peak_bytes": "train_peak"}
    if objective in ("", "accuracy"):
        return measurements.model_copy(update={"quality": {}})
    return measurements.model_copy(update={fields.get(objective, objective): None})
