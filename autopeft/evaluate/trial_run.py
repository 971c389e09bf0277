"""One trial on the bench: insert, train, report, measure, save, take out again."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autopeft.domain.layout import ModelLayout
from autopeft.domain.measurements import Measurements, Rung
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.data.batches import Batch, plan
from autopeft.evaluate.devices import device_name
from autopeft.evaluate.insertion import Inserted, insert
from autopeft.evaluate.methods import Calibration
from autopeft.evaluate.outcomes import MissingMetricError, OverLimitError
from autopeft.evaluate.tasks import Exam, Task
from autopeft.evaluate.train import (
    Training,
    autocast,
    computing_dtype,
    moved,
    planned_steps,
    rung_steps,
)
from autopeft.evaluate.untouched import Untouched

CALIBRATION_BATCHES = 8
"""So many training batches are shown to an initialisation that looks at data."""
FIRST_LOSSES = 20
"""So many losses from the start of training are kept, to compare runs with."""


@dataclass
class Bench:
    """What stays loaded between trials."""

    spec: SearchSpec
    task: Task
    layout: ModelLayout
    model: Any
    untouched: Untouched
    train: list[Batch]
    validation: Exam
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights."""


class TrialRun:
    """The life of one trial; `restore` must follow whatever happens in `steps`."""

    def __init__(self, bench: Bench, task: EvaluationTask) -> None:
        self._bench = bench
        self._task = task
        self._found: dict[str, Any] = {
            "device": device_name(bench.device),
            "dtype": computing_dtype(bench.device, bench.dtype),
        }
        self._rungs: list[Rung] = []
        self._setup_s = 0.0
        self._inserted: Inserted | None = None
        self._training: Training | None = None

    def measured(self) -> Measurements:
        """The numbers so far."""
        return Measurements(**self._found, rungs=tuple(self._rungs), setup_s=self._setup_s)

    def steps(self) -> Generator[Mapping[int, Rung], frozenset[int] | None, TrialStatus]:
        """Train; yields every rung and is sent the numbers of the trials to stop.

        Raises:
            OverLimitError, NotFiniteError, MissingMetricError and whatever torch and peft raise.
        """
        inserted = self._insert()
        training = self._plan(inserted)
        rungs, losses, train_s, since = rung_steps(self._bench.spec.training, training.steps), [], 0.0, 0
        for step in training.run():
            losses.append(step.loss)
            train_s += step.seconds
            self._found |= {
                "steps": step.number,
                "train_s": train_s,
                "train_tokens": self._found["train_tokens"] + step.tokens,
                "first_losses": tuple(losses[:FIRST_LOSSES]),
            }
            self._check_memory(training)
            if step.number not in rungs:
                continue
            last = step.number == training.steps
            if last:
                training.free()
            quality = self._validate(inserted.model)
            rung = Rung(
                step=step.number,
                planned_steps=training.steps,
                quality=quality,
                train_loss=math.fsum(losses[since:]) / (len(losses) - since),
                train_s=train_s,
            )
            since = len(losses)
            self._rungs.append(rung)
            stop = yield {self._task.number: rung}
            if not last and self._task.number in (stop or ()):
                return TrialStatus.STOPPED_EARLY
        bench = self._bench
        self._found["infer_peak"] = bench.validation.peak(inserted.model, bench.device, bench.dtype)
        self._found["adapter_bytes"] = save_adapter(inserted, Path(self._task.artefact_dir))
        if self._bench.dtype != torch.float32 and not inserted.saved_exactly:
            self._validate_saved()
        return TrialStatus.COMPLETE

    def restore(self) -> None:
        """Take the PEFT modules out again and forget everything that holds their tensors."""
        started = time.perf_counter()
        if self._training is not None:
            self._training.free()
        self._training = self._inserted = None
        self._bench.untouched.restore()
        self._setup_s += time.perf_counter() - started

    def _insert(self) -> Inserted:
        started = time.perf_counter()
        bench = self._bench
        steps = planned_steps(bench.spec.training, len(bench.train))
        self._inserted = inserted = insert(
            bench.untouched,
            self._task.candidate,
            bench.layout,
            self._task.seed,
            steps=steps,
            calibration=self._calibration(),
        )
        self._setup_s += time.perf_counter() - started
        trainable = inserted.trainable()
        self._found |= {
            "trainable_parameters": sum(parameter.numel() for parameter in trainable),
            "head_parameters": inserted.head_parameters(),
            "total_parameters": sum(parameter.numel() for parameter in inserted.model.parameters()),
            "inserted_modules": inserted.module_names,
        }
        return inserted

    def _calibration(self) -> Calibration:
        """The first batches of the trial's own order."""
        bench = self._bench
        batches = plan(bench.train, CALIBRATION_BATCHES, self._task.seed)
        return Calibration(
            batches=[moved(batch, bench.device) for batch in batches],
            autocast=lambda: autocast(bench.device, bench.dtype),
        )

    def _plan(self, inserted: Inserted) -> Training:
        bench, spec = self._bench, self._bench.spec.training
        steps = planned_steps(spec, len(bench.train))
        self._training = Training(
            inserted,
            list(plan(bench.train, steps * spec.gradient_accumulation, self._task.seed)),
            spec,
            self._task.candidate.learning_rate,
            bench.device,
            bench.dtype,
        )
        self._found |= {"planned_steps": steps, "train_tokens": 0}
        return self._training

    def _check_memory(self, training: Training) -> None:
        peak, limit = training.meter.peak(), self._bench.spec.max_memory
        self._found["train_peak"] = peak
        if peak is not None and limit is not None and peak.live_bytes > limit:
            raise OverLimitError(peak, int(limit))

    def _validate_saved(self) -> None:
        """Put the quality of the saved adapter, on the untouched base model, in place of the live model's.

        In half precision some adapters are rounded on their way: PiSSA takes its first values out of the base weights,
        P-tuning keeps outputs of a float32 network. The saved one is then another model than the one that was trained.
        """
        self._training = self._inserted = None
        self._bench.untouched.restore()
        self._validate(load_adapter(self._bench.model, Path(self._task.artefact_dir), self._bench.untouched))

    def _validate(self, model: Any) -> dict[str, float]:
        """Validation metrics now; also the time they took, so that the last pass is the one that counts.

        Raises:
            MissingMetricError: where a metric is not finite. NotFiniteError: where a prediction is not.
        """
        bench = self._bench
        found = bench.validation.score(model, bench.device, bench.dtype)
        quality = found.quality
        self._found |= {"quality": quality, "evaluate_s": found.seconds, "latency_s": found.row_seconds}
        for name in bench.task.info.metrics:
            if not math.isfinite(quality.get(name, math.nan)):
                raise MissingMetricError(f"the validation {name} is {quality.get(name, 'missing')}")
        return quality
