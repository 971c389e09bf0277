"""One trial on the bench: insert, train, report, measure, save, take out again."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from autopeft.domain.candidate import digest_of
from autopeft.domain.measurements import Measurements, Report, TakenUp
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.arithmetic import autocast, computing_dtype, moved, wait
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.bench import Bench
from autopeft.evaluate.data.batches import plan
from autopeft.evaluate.devices import device_name
from autopeft.evaluate.insertion import Inserted, insert
from autopeft.evaluate.methods import Calibration
from autopeft.evaluate.outcomes import MissingMetricError, OverLimitError, is_out_of_memory
from autopeft.evaluate.pruning.phase import Estimation, apply, estimation_steps, wiring_of
from autopeft.evaluate.pruning.record import folded_tensors, from_record, to_record
from autopeft.evaluate.pruning.wiring import Wiring
from autopeft.evaluate.resumption import Checkpoints
from autopeft.evaluate.tally import Tally
from autopeft.evaluate.train import Step, Training, planned_steps, rung_steps
from autopeft.evaluate.untouched import tensor_sum

CALIBRATION_BATCHES = 8
"""So many training batches are shown to an initialisation that looks at data."""


class TrialRun:
    """The life of one trial; `restore` must follow whatever happens in `steps`."""

    def __init__(self, bench: Bench, task: EvaluationTask) -> None:
        self._bench = bench
        self._task = task
        self._planned = planned_steps(bench.spec.training, len(bench.train))
        self._checkpoints = Checkpoints(task, bench.recipe, bench.spec.checkpoint_s)
        self._forget()

    def _forget(self) -> None:
        bench = self._bench
        self._tally = Tally(
            self._planned,
            device=device_name(bench.device),
            dtype=computing_dtype(bench.device, bench.dtype),
            load_peak=bench.load_peak,
            device_taken_bytes=bench.taken_bytes,
        )
        self._inserted: Inserted | None = None
        self._estimation: Estimation | None = None
        """Until the pruning step."""
        self._training: Training | None = None
        self._wiring = Wiring()
        self._additions = ""
        """Digest of what was put in: which tensors are trained, and what those hold that are not."""
        self._in_step = self._pausing = False
        self._step_s = 0.0

    def measured(self) -> Measurements:
        """The numbers so far."""
        problem = self._checkpoints.problem
        return self._tally.measured(**({"checkpoint_problem": problem} if problem else {}))

    def steps(self) -> Generator[Mapping[int, Report], frozenset[int] | None, TrialStatus]:
        """Train; yields where it was taken up and every rung, and is sent the numbers of the trials to stop.

        Raises:
            OverLimitError, NotFiniteError, MissingMetricError and whatever torch and peft raise.
        """
        taken_up = self._start()
        if taken_up is not None:
            yield {self._task.number: taken_up}
        rungs = rung_steps(self._bench.spec.training, self._planned)
        # A checkpoint may have been written between a step and its rung.
        if self._tally.steps in rungs and self._tally.missing_rung and (yield from self._rung()):
            return TrialStatus.STOPPED_EARLY
        steps = self._phases()
        while (step := self._next(steps)) is not None:
            self._step_s = step.seconds
            self._tally.note(step)
            self._check_memory()
            rung_comes = step.number in rungs and step.number < self._planned
            saving = self._pausing or (self._checkpoints.due() and not rung_comes)
            if saving:
                self._checkpoints.write(self._state)
            self._in_step = False
            if saving and self._pausing:  # else it was asked for a moment too late, and the next step hears it
                self._pausing = False
                yield {}
            if step.number in rungs and (yield from self._rung()):
                return TrialStatus.STOPPED_EARLY
        self._in_step = False
        bench, inserted, found = self._bench, self._here, self._tally.found
        found["infer_peak"] = bench.validation.peak(inserted.model, bench.device, bench.dtype)
        found["adapter_bytes"] = save_adapter(inserted, Path(self._task.artefact_dir))
        if self._bench.dtype != torch.float32 and not inserted.saved_exactly:
            self._validate_saved()
        return TrialStatus.COMPLETE

    def pause(self) -> bool:
        """Ask for a checkpoint and a place to leave at after the step under way; see `domain.ports.Evaluator.pause`."""
        if self._inserted is None or not self._checkpoints.quick(self._state_bytes, self._step_s):
            return False
        self._pausing = True
        return self._in_step

    def restore(self) -> None:
        """Take the PEFT modules out again and forget everything that holds their tensors."""
        started = time.perf_counter()
        if self._training is not None:
            self._training.free()
        self._training = self._estimation = self._inserted = None
        self._in_step = False
        self._bench.untouched.restore()
        self._tally.setup_s += time.perf_counter() - started

    def delete_checkpoint(self) -> None:
        """Nothing is to be gone on with."""
        self._checkpoints.delete()

    @property
    def _here(self) -> Inserted:
        assert self._inserted is not None  # between `_begin` and `restore`
        return self._inserted

    def _start(self) -> TakenUp | None:
        """Come to where an earlier attempt was, or to the first step; says so, where there was such an attempt."""
        saved = self._checkpoints.found()
        if saved is not None:
            try:
                self._begin(saved)
            except Exception as error:  # another version of a library may break off anywhere
                if is_out_of_memory(error):
                    raise
                error.__traceback__ = None
                self._checkpoints.refuse(error)
                self.restore()
                self._forget()
            else:
                return TakenUp(step=self._tally.steps, planned_steps=self._planned)
        self._begin(None)
        if not self._checkpoints.problem:
            return None
        return TakenUp(step=0, planned_steps=self._planned, problem=self._checkpoints.problem)

    def _begin(self, saved: Mapping[str, Any] | None) -> None:
        """Insert, and make the training ready for its next step.

        Raises:
            ValueError: where the state is not one of what was put in.
        """
        inserted = self._insert()
        self._additions = self._digest_of_additions(inserted)
        if saved is not None and saved["additions"] != self._additions:
            raise ValueError("what was put into the model is not what it was")
        pruning, pruned = self._task.candidate.pruning, saved is not None and saved["pruned"] is not None
        if pruning is None:
            self._training = self._make_training(0, self._planned)
        elif saved is not None and pruned:
            apply(self._bench.untouched, inserted, from_record(saved["pruned"], saved["folded"]))
            self._training = self._make_training(estimation_steps(pruning, self._planned), self._planned)
        else:
            first = estimation_steps(pruning, self._planned)
            self._estimation = Estimation(
                self._bench.untouched,
                inserted,
                pruning,
                self._wiring,
                seed=self._task.seed,
                steps=first,
                passes=self._bench.spec.training.gradient_accumulation,
            )
            self._training = self._make_training(0, first)
        if saved is not None:
            self._load(saved)

    def _state(self) -> dict[str, Any]:
        """All that the rest of the trial and its measurements depend on; between two steps."""
        assert self._training is not None
        pruned = self._here.pruned
        return {
            "additions": self._additions,
            "tally": self._tally.state(),
            "pruned": None if pruned is None else to_record(pruned),
            "folded": {} if pruned is None else folded_tensors(pruned),
            "estimation": None if self._estimation is None else self._estimation.state(),
            # Written at once: a copy of a whole model's optimiser would need room that there may not be.
            "training": self._training.state(copy=False),
        }

    def _load(self, saved: Mapping[str, Any]) -> None:
        assert self._training is not None
        self._tally.load(saved["tally"])
        if self._estimation is not None:
            self._estimation.load(saved["estimation"])
        self._training.load(saved["training"])

    def _state_bytes(self) -> int:
        """What a checkpoint takes about: what is trained, and twice as much of the optimiser's."""
        return 3 * sum(part.numel() * part.element_size() for part in self._here.trainable())

    def _digest_of_additions(self, inserted: Inserted) -> str:
        first = {name: tensor_sum(values) for name, values in inserted.initial.items()}
        trained = [(name, list(part.shape)) for name, part in inserted.model.named_parameters() if part.requires_grad]
        forms = [companion.form() for companion in inserted.companions]
        return digest_of([self._bench.untouched.frozen_additions(inserted.model), first, trained, forms])

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
            steps=self._planned,
            calibration=calibration,
        )
        self._tally.setup_s += time.perf_counter() - started
        self._count_all(inserted)
        return inserted

    def _count_all(self, inserted: Inserted) -> None:
        """What the model holds, and what of it is trained."""
        self._tally.found["total_parameters"] = sum(parameter.numel() for parameter in inserted.model.parameters())
        self._count(inserted)

    def _count(self, inserted: Inserted) -> None:
        """What is trained, as found in the model as it is now."""
        self._tally.found |= {
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

    def _phases(self) -> Iterator[Step]:
        """Every step that is left: of one training, or of estimation and, after the pruning step, of training."""
        assert self._training is not None
        if self._estimation is not None:
            for step in self._training.run():
                self._tally.add_seconds("estimation_s", step.seconds)
                yield step
            done = self._training.end
            self._prune(self._estimation)
            self._estimation = None
            self._training = self._make_training(done, self._planned)
        yield from self._training.run()

    def _next(self, steps: Iterator[Step]) -> Step | None:
        self._in_step = True
        return next(steps, None)

    def _rung(self) -> Generator[Mapping[int, Report], frozenset[int] | None, bool]:
        """Validate after a step and report; returns whether the trial is to be stopped."""
        last = self._tally.steps == self._planned
        if last and self._training is not None:
            self._training.free()
        if self._here.grows:
            self._count_all(self._here)
        rung = self._tally.rung(self._validate(self._here.model))
        saved = last or self._checkpoints.worth()
        if not last and saved:
            self._checkpoints.write(self._state)
        try:
            stop = yield {self._task.number: rung}
        except GeneratorExit:
            # Left here, perhaps to be gone on with when more is known.
            if not saved:
                self._checkpoints.write(self._state)
            raise
        stopped = not last and self._task.number in (stop or ())
        if stopped and not saved:
            self._checkpoints.write(self._state)
        return stopped

    def _make_training(self, done: int, end: int) -> Training:
        """The training of one phase, from the step after `done` to the step `end`."""
        bench, candidate, inserted = self._bench, self._task.candidate, self._here
        passes = bench.spec.training.gradient_accumulation
        batches = list(plan(bench.train, self._planned * passes, self._task.seed))
        return Training(
            inserted,
            batches[done * passes : end * passes],
            bench.spec.training,
            candidate.learning_rate,
            bench.device,
            bench.dtype,
            done,
            self._planned,
            # An estimation scores what it may prune by gradients of every layer.
            candidate.policy if self._estimation is None else None,
            self._task.seed,
        )

    def _prune(self, estimation: Estimation) -> None:
        inserted = self._here
        if self._training is not None:
            self._training.free()
        self._training = None
        wait(self._bench.device)
        started = time.perf_counter()
        copied = estimation.prune()
        wait(self._bench.device)
        self._tally.found |= {
            "pruning_s": time.perf_counter() - started,
            "copied_bytes": copied,
            "kept_parameters": sum(parameter.numel() for parameter in inserted.model.parameters()),
        }
        self._count(inserted)

    def _check_memory(self) -> None:
        assert self._training is not None  # a step was done
        peak, limit = self._training.meter.peak(), self._bench.spec.max_memory
        self._tally.found["train_peak" if self._estimation is None else "estimation_peak"] = peak
        if self._estimation is None:
            self._tally.found["train_mean_bytes"] = self._training.meter.mean_bytes()
            if scores := self._training.layer_scores():
                self._tally.found |= {"layer_scores": scores, "scored_layers": self._training.gates.layers}
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
        self._tally.found |= {"quality": quality, "evaluate_s": found.seconds, "latency_s": found.row_seconds}
        for name in bench.task.info.metrics:
            if not math.isfinite(quality.get(name, math.nan)):
                raise MissingMetricError(f"the validation {name} is {quality.get(name, 'missing')}")
        return quality
