"""Training what was inserted: a compact loop that pauses after every optimiser step, and prediction."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from autopeft.domain.layout import ModelLayout
from autopeft.domain.measurements import PeakMemory
from autopeft.domain.spec import TrainingSpec
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.insertion import Inserted
from autopeft.evaluate.memory.peaks import PeakMeter, inference_meter, training_meter
from autopeft.evaluate.outcomes import NotFiniteError

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True)
class Step:
    """One optimiser step that was done."""

    number: int
    """Counts from 1."""
    loss: float
    """Mean over its forward passes."""
    tokens: int
    """Tokens it trained on, padding excluded."""
    seconds: float


@dataclass(frozen=True)
class Predictions:
    """What a model said about some batches, in their order."""

    logits: torch.Tensor
    """float32 on the CPU, [rows, classes]; [rows, 1] for regression."""
    labels: torch.Tensor
    """[rows]"""
    seconds: float
    row_seconds: float
    """Median over the batches of seconds per row."""


def planned_steps(spec: TrainingSpec, batches: int) -> int:
    """Optimiser steps of a training on so many batches per epoch; at least 1."""
    if spec.steps is not None:
        return spec.steps
    return max(1, round(spec.epochs * batches / spec.gradient_accumulation))


def rung_steps(spec: TrainingSpec, steps: int) -> tuple[int, ...]:
    """The steps after which validation quality is reported, ascending; the last is the last step."""
    return tuple(sorted({max(1, round(share * steps)) for share in spec.rungs}))


def arithmetic_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype | None:
    """What autocast computes in: bfloat16 on a GPU and wherever the frozen weights are in half precision; else None.

    float16 weights on the CPU are the exception: the CPU's layer norm refuses bfloat16 inputs beside them. Elsewhere
    they are computed with in bfloat16 as well, whose range needs no scaling of the loss.
    """
    if device.type == "cpu" and dtype == torch.float16:
        return torch.float16
    return torch.bfloat16 if device.type == "cuda" or dtype != torch.float32 else None


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Arithmetic in `arithmetic_dtype`, in which half-precision weights and a float32 head meet."""
    chosen = arithmetic_dtype(device, dtype)
    return torch.autocast(device.type, dtype=chosen or torch.bfloat16, enabled=chosen is not None)


def computing_dtype(device: torch.device, dtype: torch.dtype) -> str:
    """The dtype of the weights, and what autocast computes in: `float32`, or `float32, bfloat16 autocast`."""
    chosen = arithmetic_dtype(device, dtype)
    names = [str(dtype), *([f"{chosen} autocast"] if chosen else [])]
    return ", ".join(name.removeprefix("torch.") for name in names)


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that a clock read afterwards counts all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_mode(model: Any, base: Any, layout: ModelLayout) -> None:
    """Training mode where something is trained, evaluation mode, so no dropout, where nothing is.

    In evaluation mode are the blocks without a trainable parameter, and everything of the body outside the blocks that
    holds none (embeddings, poolers, what the body itself does between its blocks). Hidden states below the lowest
    trained block are then the same in every epoch. A dropout between body and head belongs to the head and stays on.
    """
    model.train()
    blocks = [layer.path for layer in layout.layers]

    def visit(path: str, module: nn.Module) -> None:
        if any(block.startswith(f"{path}.") for block in blocks):
            module.training = False  # its own flag alone: the blocks decide for themselves
            for name, child in module.named_children():
                visit(f"{path}.{name}", child)
        elif not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()

    for name, child in base.named_children():
        if any(True for _ in child.parameters()):
            visit(name, child)


class Training:
    """The training of one candidate, step by step.

    AdamW over everything that requires a gradient, or the optimiser that the method brings; the learning rate by
    `transformers.get_scheduler` with `ceil(warmup * steps)` warm-up steps; the loss the model's own, divided by the
    forward passes per step. No dropout in layers that hold nothing trainable (`training_mode`).
    """

    def __init__(
        self,
        inserted: Inserted,
        batches: Sequence[Batch],
        spec: TrainingSpec,
        learning_rate: float,
        device: torch.device,
        dtype: torch.dtype,
        done: int = 0,
        planned: int | None = None,
    ) -> None:
        """A training, or one phase of it.

        `batches` holds `gradient_accumulation` batches per step, in the order of training. Steps are counted on from
        `done`, those of earlier phases, and rungs are shares of the `planned` steps of all phases; the schedule of the
        learning rate is the phase's own.
        """
        # A decoder's cache of keys and values serves generation only; training would keep it for nothing.
        inserted.base.config.use_cache = False
        self._inserted = inserted
        self._model = inserted.model
        self._batches = batches
        self._spec = spec
        self._device = device
        self._dtype = dtype
        self._accumulate = spec.gradient_accumulation
        self.steps = len(batches) // self._accumulate
        self._done = done
        self._planned = planned or done + self.steps
        self._rungs = frozenset(rung_steps(spec, self._planned))
        self._parameters = inserted.trainable()
        self._optimizer = inserted.optimizer(learning_rate, spec.weight_decay)
        self._schedule = get_scheduler(
            _SCHEDULES[spec.schedule], self._optimizer, math.ceil(spec.warmup * self.steps), self.steps
        )
        sizes = [max(batch_size(batch) for batch in self._of(number)) for number in range(self.steps)]
        self.meter: PeakMeter = training_meter(device, sizes, self._model, self._optimizer)

    def run(self) -> Iterator[Step]:
        """Do the steps one by one; between two the caller may evaluate the model or stop.

        Raises:
            NotFiniteError: where a loss is NaN or infinite, before the weights are changed by it.
        """
        for number in range(self.steps):
            if number == 0 or not self._model.training:  # a prediction may have come between
                training_mode(self._model, self._inserted.base, self._inserted.layout)
            started = time.perf_counter()
            loss, tokens = self._step(number)
            if self._done + number + 1 in self._rungs:
                wait(self._device)
            yield Step(self._done + number + 1, loss, tokens, time.perf_counter() - started)

    def free(self) -> None:
        """Drop gradients and optimiser state, which prediction does not need."""
        for parameter in self._parameters:
            parameter.grad = None
        self._optimizer.state.clear()

    def _of(self, number: int) -> Sequence[Batch]:
        return self._batches[number * self._accumulate : (number + 1) * self._accumulate]

    def _step(self, number: int) -> tuple[float, int]:
        total = 0.0
        with self.meter.step(number):
            for batch in self._of(number):
                inputs = moved(batch, self._device)
                self.meter.add(inputs.values())
                with autocast(self._device, self._dtype):
                    loss = self._model(**inputs).loss / self._accumulate
                value = loss.item()
                if not math.isfinite(value):
                    at = f"{self._done + number + 1} of {self._planned}"
                    raise NotFiniteError(f"the training loss is {value} in step {at}")
                loss.backward()
                total += value
                del loss, inputs
            if self._spec.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self._spec.clip_norm)
            self._optimizer.step()
            self._schedule.step()
            self._inserted.after_step(self._done + number + 1)
            self._optimizer.zero_grad(set_to_none=True)
        return total, sum(batch.tokens for batch in self._of(number))


def predict(model: Any, batches: Sequence[Batch], device: torch.device, dtype: torch.dtype) -> Predictions:
    """Predict every batch in evaluation mode.

    Raises:
        NotFiniteError: where a prediction is NaN or infinite.
    """
    model.eval()
    logits, row_seconds = [], []
    started = time.perf_counter()
    for batch in batches:
        began = time.perf_counter()
        # The copy to the host waits for the device, so that the clock needs no synchronisation of its own.
        logits.append(_forward(model, moved(batch, device), device, dtype).float().cpu())
        row_seconds.append((time.perf_counter() - began) / len(batch.labels))
    together = torch.cat(logits)
    if not bool(torch.isfinite(together).all()):
        raise NotFiniteError("the model's predictions are not finite")
    return Predictions(
        logits=together,
        labels=torch.cat([batch.labels for batch in batches]),
        seconds=time.perf_counter() - started,
        row_seconds=statistics.median(row_seconds),
    )


def inference_peak(model: Any, batches: Sequence[Batch], device: torch.device, dtype: torch.dtype) -> PeakMemory | None:
    """The most bytes live while predicting these batches, which is while predicting the largest of them."""
    model.eval()
    largest = max(batches, key=lambda batch: (batch_size(batch), batch.inputs["input_ids"].shape[1]))
    inputs = moved(largest, device)
    meter = inference_meter(device, model)
    with meter.step(0):
        meter.add(inputs.values())
        _forward(model, inputs, device, dtype)
    return meter.peak()


def batch_size(batch: Batch) -> int:
    """Rows times padded tokens."""
    return batch.inputs["input_ids"].numel()


def moved(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """The arguments of the model's forward pass on `device`, labels included."""
    tensors = {**batch.inputs, "labels": batch.labels}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def _forward(model: Any, inputs: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    arguments = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    with torch.no_grad(), autocast(device, dtype):
        return model(**arguments).logits
