"""The evaluator: trains and measures candidates on a base model and data that stay loaded."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.measurements import Report
from autopeft.domain.ports import Evaluation, EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Outcome, TrialStatus
from autopeft.evaluate.artefact import PREDICTIONS, load_adapter
from autopeft.evaluate.base_model import load_base_model
from autopeft.evaluate.bench import Bench
from autopeft.evaluate.data.batches import plan_digest
from autopeft.evaluate.data.load import load_data
from autopeft.evaluate.devices import choose_device, device_name, limit_share
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.peaks import loading_meter, taken_bytes
from autopeft.evaluate.outcomes import failed, first_line, is_out_of_memory
from autopeft.evaluate.resumption import recipe_digest
from autopeft.evaluate.tasks import make_task
from autopeft.evaluate.trial_run import TrialRun
from autopeft.evaluate.untouched import Untouched, removed_afterwards

_LEAK_BYTES = 64 << 20
"""Device memory that a trial may leave behind (library workspaces grow on demand) before its worker is replaced."""


def open_evaluator(
    spec: Mapping[str, Any], threads: int = 1, device: str = "auto", gpu_share: float | None = None
) -> TorchEvaluator:
    """An evaluator for a search.

    Args:
        spec: `SearchSpec.model_dump(mode="json")`.
        threads: Of the CPU.
        device: `auto`, `cpu`, or a name of torch's.
        gpu_share: The part of one GPU that this process may fill, where it shares the GPU with others.

    Raises:
        UserError: where model or data cannot be used, or the model does not fit into memory.
    """
    torch.set_num_threads(threads)
    asked, chosen = SearchSpec.model_validate(dict(spec)), choose_device(device)
    limit_share(chosen, gpu_share)
    try:
        return TorchEvaluator(asked, chosen)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the share of the GPU that a worker has" if chosen.type == "cuda" else "main memory"
        raise UserError(
            Problem(
                "model",
                f"the base model does not fit into {where}: {first_line(error)}",
                "",
                "Choose a smaller model, set model.dtype to bfloat16, or use fewer workers.",
            )
        ) from error


class TorchEvaluator:
    """An `autopeft.domain.ports.Evaluator` on one device."""

    def __init__(self, spec: SearchSpec, device: torch.device) -> None:
        data = load_data(spec.data, spec.seed)
        taken, meter = taken_bytes(device), loading_meter(device)
        with meter.step(0) if meter is not None else nullcontext():
            base = load_base_model(spec.model, data.task, spec.seed, device)
        layout = inspect_layout(base.model, base.new_parameters)
        task = make_task(spec, data, base, layout)
        validation = task.exam("validation")
        assert validation is not None  # no data set is loaded without
        untouched, batches, dtype = Untouched(base.model), task.train_batches(), next(base.model.parameters()).dtype
        self._bench = Bench(
            spec=spec,
            task=task,
            layout=layout,
            model=base.model,
            untouched=untouched,
            train=batches,
            validation=validation,
            device=device,
            dtype=dtype,
            recipe=recipe_digest(
                spec.model_dump(mode="json", include={"model", "data", "training", "seed"}),
                [data.fingerprint, untouched.fingerprint, plan_digest(batches)],
                [device_name(device), str(dtype)],
            ),
            load_peak=None if meter is None else meter.peak(),
            taken_bytes=taken,
        )
        self._test = task.exam("test")
        self._device = device
        self._run: TrialRun | None = None
        self._resting_bytes: int | None = None

    def evaluate(self, tasks: Sequence[EvaluationTask]) -> Evaluation:
        """Train these tasks one after another; see `autopeft.domain.ports.Evaluator`."""
        outcomes: dict[int, Outcome] = {}
        for task in tasks:
            outcomes[task.number] = yield from self._one(task)
        return outcomes

    def pause(self) -> bool:
        """See `autopeft.domain.ports.Evaluator`."""
        run = self._run
        return run is not None and run.pause()

    def score_test(self, artefact_dir: Path) -> dict[str, float]:
        """Test metrics of a saved adapter, loaded the plain way onto the untouched model.

        Writes `test_predictions.json` beside the adapter: names of the predicted classes, numbers for a regression,
        generated or chosen answers (or else each row's loss per token) for a language model, in the order of the test
        split, with the rows' indices.

        Raises:
            UserError: where the data has no test split.
        """
        bench = self._bench
        if self._test is None:
            raise UserError(Problem("data.test", "the data has no test split", "", "Give one with --test FILE."))
        with removed_afterwards(bench.untouched):
            model = load_adapter(bench.model, Path(artefact_dir), bench.untouched)
            found = self._test.score(model, bench.device, bench.dtype)
            del model
        if changed := bench.untouched.differences():
            raise RuntimeError(f"loading the adapter in {artefact_dir} changed the base model: {', '.join(changed)}")
        record = {"rows": list(range(len(found.predictions))), "predictions": found.predictions}
        (Path(artefact_dir) / PREDICTIONS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return found.quality

    def close(self) -> None:
        """Free the model."""
        del self._bench
        self._release()

    def _one(self, task: EvaluationTask) -> Generator[Mapping[int, Report], frozenset[int], Outcome]:
        started = time.perf_counter()
        self._run = run = TrialRun(self._bench, task)
        try:
            try:
                status = yield from run.steps()
            finally:
                self._run = None
                run.restore()
            outcome = Outcome(status=status, measurements=run.measured())
        except Exception as error:
            outcome = failed(error, run.measured(), task.candidate)
            # The traceback's frames hold the trial's tensors.
            error.__traceback__ = None
        if outcome.status is not TrialStatus.STOPPED_EARLY:
            run.delete_checkpoint()
        return outcome.model_copy(
            update={
                "seconds": time.perf_counter() - started,
                "recycle_worker": outcome.recycle_worker or self._spoilt(outcome),
            }
        )

    def _spoilt(self, outcome: Outcome) -> bool:
        """Whether the next trial would not find what this one found, or that cannot be told."""
        try:
            self._release()
            differs = bool(self._bench.untouched.differences())
            return self._leaked(outcome) or differs
        except Exception:  # a broken device says so here; what the trial measured stands
            return True

    def _release(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _leaked(self, outcome: Outcome) -> bool:
        """Whether more of the device stays taken than after the first trial, which made the libraries' workspaces."""
        if self._device.type != "cuda":
            return False
        allocated = torch.cuda.memory_allocated(self._device)
        if self._resting_bytes is None:
            if outcome.status is TrialStatus.COMPLETE:
                self._resting_bytes = allocated
            return False
        return allocated - self._resting_bytes > _LEAK_BYTES
