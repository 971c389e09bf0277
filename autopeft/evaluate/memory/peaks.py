"""The peaks of a trial's phases: loading, the optimiser steps of estimation and training, a validation pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from autopeft.domain.measurements import MemorySource, PeakMemory
from autopeft.evaluate.memory.tracker import StorageTracker, apart

Load = tuple[float, float]
"""What a step is expected to take, compared in this order. Under a policy: activations (tokens times layers that the
backward pass goes through), and the number of tensors that the optimiser has a state of. While a method grows: this
number, and the tokens."""
NEAR, NEAR_STEPS = 0.8, 24
"""So many steps are watched whose expected load is at least this share of the heaviest so far."""


class PeakMeter(Protocol):
    """Watches the steps of one phase."""

    def step(self, number: int, load: Load | None = None) -> AbstractContextManager[None]:
        """Around step `number`, counted from 0; `load` where what trains differs from step to step."""
        ...

    def aside(self, size: float) -> AbstractContextManager[None]:
        """Around what is done between two steps on such a size: counts for the peak, not for the mean."""
        ...

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Inside a step: these tensors, made outside, are live as well."""
        ...

    def peak(self) -> PeakMemory | None:
        """The largest peak of the steps so far; None before the first that was watched."""
        ...

    def mean_bytes(self) -> int | None:
        """Mean of the peaks of single steps, of all or of a random sample; None before the first of them."""
        ...

    def state(self) -> dict[str, Any]:
        """What was seen so far, as JSON values; between two steps."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a meter of the same kind and steps, as if never interrupted."""
        ...


class AllocatorMeter:
    """Asks the CUDA allocator of this process, every step, so that what lies between steps does not count.

    Other processes have allocators of their own, so that nothing of theirs is in these numbers (`taken_bytes` says what
    they hold). What an earlier phase left in the allocator's cache would count as reserved: a new meter empties it.
    """

    def __init__(self, device: torch.device) -> None:
        """Begins a phase: what was given to the device is done first, and what is no longer used is given back."""
        self._device = device
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        self._live = 0
        self._reserved = 0
        self._steps: list[int] = []

    @contextmanager
    def step(self, number: int, load: Load | None = None) -> Iterator[None]:
        with self._watched():
            yield
        self._steps.append(torch.cuda.max_memory_allocated(self._device))

    def aside(self, size: float) -> AbstractContextManager[None]:
        return self._watched()

    @contextmanager
    def _watched(self) -> Iterator[None]:
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

    def mean_bytes(self) -> int | None:
        return round(sum(self._steps) / len(self._steps)) if self._steps else None

    def state(self) -> dict[str, Any]:
        return {"live": self._live, "reserved": self._reserved, "steps": list(self._steps)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._live, self._reserved = int(state["live"]), int(state["reserved"])
        self._steps = [int(one) for one in state["steps"]]


class TrackedMeter:
    """Counts the storages of chosen steps, because tracking every step would slow the training down.

    Where what trains differs from step to step, a step is watched as well whenever it is expected to take more than
    any watched before, and so are the first `NEAR_STEPS` that are expected to take nearly as much: an expectation
    counts layers, and not what each of them keeps.
    """

    def __init__(
        self,
        steps: Iterable[int],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        sample: Iterable[int] = (),
    ) -> None:
        """`steps` are watched for the peak; `sample` too, and the mean is over these alone."""
        self._steps = frozenset(steps)
        self._sample = frozenset(sample)
        self._sampled: list[int] = []
        self._heaviest: Load | None = None
        self._near = 0
        self._largest_aside = 0.0
        self._model = model
        self._optimizer = optimizer
        self._peak = 0
        self._tracker: StorageTracker | None = None

    @contextmanager
    def step(self, number: int, load: Load | None = None) -> Iterator[None]:
        # Before the first step the optimiser has no state, so that a later one of the same load takes more.
        heavier = load is not None and number > 0 and (self._heaviest is None or load > self._heaviest)
        if heavier:
            self._heaviest = load
        elif load is not None and self._heaviest is not None and self._near < NEAR_STEPS:
            near = load[0] >= NEAR * self._heaviest[0]
            self._near += near
            heavier = near
        if not heavier and number not in self._steps | self._sample:
            yield
            return
        with self._tracked() as tracker:
            yield
        if number in self._sample:
            self._sampled.append(tracker.peak_bytes)

    @contextmanager
    def aside(self, size: float) -> Iterator[None]:
        if size <= self._largest_aside:
            yield
            return
        self._largest_aside = size
        with self._tracked():
            yield

    @contextmanager
    def _tracked(self) -> Iterator[StorageTracker]:
        self._tracker = tracker = StorageTracker()
        tracker.register(self._present())
        try:
            with tracker:
                yield tracker
        finally:
            self._peak = max(self._peak, tracker.peak_bytes)
            self._tracker = None
            tracker.close()

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        if self._tracker is not None:
            self._tracker.register(tensors)

    def peak(self) -> PeakMemory | None:
        return PeakMemory(live_bytes=self._peak, source=MemorySource.TRACKED) if self._peak else None

    def mean_bytes(self) -> int | None:
        return round(sum(self._sampled) / len(self._sampled)) if self._sampled else None

    def state(self) -> dict[str, Any]:
        return {
            "peak": self._peak,
            "sampled": list(self._sampled),
            "heaviest": self._heaviest,
            "near": self._near,
            "largest_aside": self._largest_aside,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._peak, self._near = int(state["peak"]), int(state["near"])
        self._sampled = [int(one) for one in state["sampled"]]
        self._heaviest = None if state["heaviest"] is None else tuple(state["heaviest"])
        self._largest_aside = float(state["largest_aside"])

    def _present(self) -> Iterator[torch.Tensor]:
        for parameter in self._model.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
        yield from self._model.buffers()
        yield from (kept[key] for kept, key in apart(self._model))
        for state in self._optimizer.state.values() if self._optimizer else ():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def training_meter(
    device: torch.device,
    sizes: Sequence[float],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sample: Iterable[int] = (),
) -> PeakMeter:
    """A meter for the training phase; `sizes` say what the largest batch of each step takes (`batch_load`).

    Without an allocator that reports, two steps are tracked: the second, because the optimiser's state exists from
    then on, and the one with the largest batch; and those of `sample`, for the mean.
    """
    if device.type == "cuda":
        return AllocatorMeter(device)
    second = min(1, len(sizes) - 1)
    largest = max(range(second, len(sizes)), key=lambda step: sizes[step])
    tracked = {second, largest} | ({0} if sizes[0] > sizes[largest] else set())
    return TrackedMeter(tracked, model, optimizer, sample)


def loading_meter(device: torch.device) -> AllocatorMeter | None:
    """A meter for the one step 0 of loading a base model; None without an allocator that reports."""
    return AllocatorMeter(device) if device.type == "cuda" else None


def taken_bytes(device: torch.device) -> int | None:
    """What of a GPU is taken now, by all processes and by the context of this one; None on the CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)


def inference_meter(device: torch.device, model: nn.Module) -> PeakMeter:
    """A meter for the one step 0 of a prediction."""
    return AllocatorMeter(device) if device.type == "cuda" else TrackedMeter({0}, model)
