"""One trial on the bench: insert, train, report, measure, save, take out again."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autopeft.domain.layout import ModelLayout
from autopeft.domain.measurements import Measurements, PeakMemory, Rung
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.arithmetic import autocast, computing_dtype, moved, wait
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.data.batches import Batch, plan
from autopeft.evaluate.devices import device_name
from autopeft.evaluate.insertion import Inserted, insert
from autopeft.evaluate.methods import Calibration
from autopeft.evaluate.outcomes import MissingMetricError, OverLimitError
from autopeft.evaluate.pruning.phase import Estimation, estimation_steps, wiring_of
from autopeft.evaluate.pruning.wiring import Wiring
from autopeft.evaluate.tasks import Exam, Task
from autopeft.evaluate.train import Step, Training, planned_steps, rung_steps
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
    load_peak: PeakMemory | None = None
    """Of loading the model."""
    taken_bytes: int | None = None
    """What of the device was taken before."""


class TrialRun:
    """The life of one trial; `restore` must follow whatever happens in `steps`."""

    def __init__(self, bench: Bench, task: EvaluationTask) -> None:
        self._bench = bench
        self._task = task
        self._found: dict[str, Any] = {
            "device": device_name(bench.device),
            "dtype": computing_dtype(bench.device, bench.dtype),
            "load_peak": bench.load_peak,
            "device_taken_bytes": bench.taken_bytes,
        }
        self._rungs: list[Rung] = []
        self._setup_s = 0.0
        self._inserted: Inserted | None = None
        self._training: Training | None = None
        self._peak = "train_peak"
        """The measurement that the present phase's memory is of."""
        self._wiring = Wiring()

    def measured(self) -> Measurements:
        """The numbers so far."""
        return Measurements(**self._found, rungs=tuple(self._rungs), setup_s=self._setup_s)

    def steps(self) -> Generator[Mapping[int, Rung], frozenset[int] | None, TrialStatus]:
        """Train; yields every rung and is sent the numbers of the trials to stop.

        Raises:
            OverLimitError, NotFiniteError, MissingMetricError and whatever torch and peft raise.
        """
        inserted = self._insert()
        planned = planned_steps(self._bench.spec.training, len(self._bench.train))
        rungs, losses, train_s, since = rung_steps(self._bench.spec.training, planned), [], 0.0, 0
        for step in self._phases(inserted, planned):
            losses.append(step.loss)
            train_s += step.seconds
            self._found |= {
                "steps": step.number,
                "train_s": train_s,
                "train_tokens": self._found["train_tokens"] + step.tokens,
                "first_losses": tuple(losses[:FIRST_LOSSES]),
            }
            self._check_memory()
            if step.number not in rungs:
                continue
            last = step.number == planned
            if last and self._training is not None:
                self._training.free()
            if inserted.grows:
                self._count_all(inserted)
            quality = self._validate(inserted.model)
            rung = Rung(
                step=step.number,
                planned_steps=planned,
                quality=quality,
                train_loss=math.fsum(losses[since:]) / (len(losses) - since),
                train_s=train_s,
                evaluate_s=self._found["evaluate_s"],
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
        bench, candidate, calibration = self._bench, self._task.candidate, self._calibration()
        if candidate.pruning is not None:
            first = calibration.batches[0]
            self._wiring = wiring_of(bench.model, candidate, bench.layout, first, calibration.autocast)
        self._inserted = inserted = insert(
            bench.untouched,
            candidate,
            bench.layout,
            self._task.seed,
            steps=planned_steps(bench.spec.training, len(bench.train)),
            calibration=calibration,
        )
        self._setup_s += time.perf_counter() - started
        self._count_all(inserted)
        return inserted

    def _count_all(self, inserted: Inserted) -> None:
        """What the model holds, and what of it is trained."""
        self._found["total_parameters"] = sum(parameter.numel() for parameter in inserted.model.parameters())
        self._count(inserted)

    def _count(self, inserted: Inserted) -> None:
        """What is trained, as found in the model as it is now."""
        self._found |= {
            "trainable_parameters": sum(parameter.numel() for parameter in inserted.trainable()),
            "head_parameters": inserted.head_parameters(),
            "inserted_modules": inserted.module_names,
        }

    def _calibration(self) -> Calibration:
        """The first batches of the trial's own order."""
        bench = self._bench
        batches = plan(bench.train, CALIBRATION_BATCHES, self._task.seed)
        return Calibration(
            batches=[moved(batch, bench.device) for batch in batches],
            autocast=lambda: autocast(bench.device, bench.dtype),
        )

    def _phases(self, inserted: Inserted, planned: int) -> Iterator[Step]:
        """Every step of the trial: of one training, or of estimation and, after the pruning step, of training."""
        bench, pruning = self._bench, self._task.candidate.pruning
        passes = bench.spec.training.gradient_accumulation
        batches = list(plan(bench.train, planned * passes, self._task.seed))
        self._found |= {"planned_steps": planned, "train_tokens": 0}
        if pruning is None:
            yield from self._train(inserted, batches, "train_peak", 0, planned)
            return
        first = estimation_steps(pruning, planned)
        estimation = Estimation(
            bench.untouched, inserted, pruning, self._wiring, seed=self._task.seed, steps=first, passes=passes
        )
        estimation_s = 0.0
        for step in self._train(inserted, batches[: first * passes], "estimation_peak", 0, planned):
            estimation_s += step.seconds
            self._found["estimation_s"] = estimation_s
            yield step
        self._prune(inserted, estimation)
        yield from self._train(inserted, batches[first * passes :], "train_peak", first, planned)

    def _train(self, inserted: Inserted, batches: list[Batch], peak: str, done: int, planned: int) -> Iterator[Step]:
        """The steps of one phase, its memory measured as `peak`."""
        bench = self._bench
        rate = self._task.candidate.learning_rate
        self._training = training = Training(
            inserted,
            batches,
            bench.spec.training,
            rate,
            bench.device,
            bench.dtype,
            done,
            planned,
            # An estimation scores what it may prune by gradients of every layer.
            self._task.candidate.policy if peak == "train_peak" else None,
            self._task.seed,
        )
        self._peak = peak
        yield from training.run()

    def _prune(self, inserted: Inserted, estimation: Estimation) -> None:
        if self._training is not None:
            self._training.free()
        self._training = None
        wait(self._bench.device)
        started = time.perf_counter()
        copied = estimation.prune()
        wait(self._bench.device)
        self._found |= {
            "pruning_s": time.perf_counter() - started,
            "copied_bytes": copied,
            "kept_parameters": sum(parameter.numel() for parameter in inserted.model.parameters()),
        }
        self._count(inserted)

    def _check_memory(self) -> None:
        assert self._training is not None  # a step was done
        peak, limit = self._training.meter.peak(), self._bench.spec.max_memory
        self._found[self._peak] = peak
        if self._peak == "train_peak":
            self._found["train_mean_bytes"] = self._training.meter.mean_bytes()
            if scores := self._training.layer_scores():
                self._found |= {"layer_scores": scores, "scored_layers": self._training.gates.layers}
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
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()  # else what it leaves cached counts as reserved by the training that goes on
        quality = found.quality
        self._found |= {"quality": quality, "evaluate_s": found.seconds, "latency_s": found.row_seconds}
        for name in bench.task.info.metrics:
            if not math.isfinite(quality.get(name, math.nan)):
                raise MissingMetricError(f"the validation {name} is {quality.get(name, 'missing')}")
        return quality
