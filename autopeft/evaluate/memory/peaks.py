"""The peaks of a trial: `train_peak` over its optimiser steps, `infer_peak` over a validation pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn

from autopeft.domain.measurements import MemorySource, PeakMemory
from autopeft.evaluate.memory.tracker import StorageTracker


class PeakMeter(Protocol):
    """Watches the steps of one phase."""

    def step(self, number: int) -> AbstractContextManager[None]:
        """Around step `number`, counted from 0."""
        ...

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Inside a step: these tensors, made outside, are live as well."""
        ...

    def peak(self) -> PeakMemory | None:
        """The largest peak of the steps so far; None before the first that was watched."""
        ...


class AllocatorMeter:
    """Asks the CUDA allocator of this process, every step, so that what lies between steps does not count."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._live = 0
        self._reserved = 0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            yield
        finally:
            # The allocator counts when the host asks for memory, so that no synchronisation is needed.
            self._live = max(self._live, torch.cuda.max_memory_allocated(self._device))
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self._device))

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Nothing to do: the allocator knows."""

    def peak(self) -> PeakMemory | None:
        if not self._live:
            return None
        return PeakMemory(live_bytes=self._live, reserved_bytes=self._reserved, source=MemorySource.CUDA_ALLOCATOR)


class TrackedMeter:
    """Counts the storages of chosen steps, because tracking every step would slow the training down."""

    def __init__(self, steps: Iterable[int], model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._steps = frozenset(steps)
        self._model = model
        self._optimizer = optimizer
        self._peak = 0
        self._tracker: StorageTracker | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        if number not in self._steps:
            yield
            return
        self._tracker = tracker = StorageTracker()
        tracker.register(self._present())
        try:
            with tracker:
                yield
        finally:
            self._peak = max(self._peak, tracker.peak_bytes)
            self._tracker = None
            tracker.close()

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        if self._tracker is not None:
            self._tracker.register(tensors)

    def peak(self) -> PeakMemory | None:
        return PeakMemory(live_bytes=self._peak, source=MemorySource.TRACKED) if self._peak else None

    def _present(self) -> Iterator[torch.Tensor]:
        for parameter in self._model.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
        yield from self._model.buffers()
        for state in self._optimizer.state.values() if self._optimizer else ():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def training_meter(
    device: torch.device, sizes: Sequence[int], model: nn.Module, optimizer: torch.optim.Optimizer
) -> PeakMeter:
    """A meter for the training phase; `sizes` are rows times padded tokens of each step's largest batch.

    Without an allocator that reports, two steps are tracked: the second, because the optimiser's state exists from
    then on, and the one with the largest batch.
    """
    if device.type == "cuda":
        return AllocatorMeter(device)
    second = min(1, len(sizes) - 1)
    largest = max(range(second, len(sizes)), key=lambda step: sizes[step])
    tracked = {second, largest} | ({0} if sizes[0] > sizes[largest] else set())
    return TrackedMeter(tracked, model, optimizer)


def inference_meter(device: torch.device, model: nn.Module) -> PeakMeter:
    """A meter for the one step 0 of a prediction."""
    return AllocatorMeter(device) if device.type == "cuda" else TrackedMeter({0}, model)
