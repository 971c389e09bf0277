"""Prediction in evaluation mode, and the memory that it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autopeft.domain.measurements import PeakMemory
from autopeft.evaluate.arithmetic import autocast, batch_load, moved
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.memory.peaks import inference_meter
from autopeft.evaluate.outcomes import NotFiniteError


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
    largest = max(batches, key=lambda batch: (batch_load(batch), batch.inputs["input_ids"].shape[1]))
    inputs = moved(largest, device)
    meter = inference_meter(device, model)
    with meter.step(0):
        meter.add(inputs.values())
        _forward(model, inputs, device, dtype)
    return meter.peak()


def _forward(model: Any, inputs: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    arguments = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    with torch.no_grad(), autocast(device, dtype):
        return model(**arguments).logits
