"""What computing on a device needs, in training and in prediction: arithmetic, batches on the device, its clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from autopeft.evaluate.data.batches import Batch

_ON_META: ContextVar[torch.dtype | None] = ContextVar("_ON_META", default=None)


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


def autocasting(device: torch.device) -> bool:
    """Whether autocast is on for tensors of this device; on `meta`, which it passes by, whether one is emulated."""
    return _ON_META.get() is not None if device.type == "meta" else torch.is_autocast_enabled(device.type)


@contextmanager
def emulated_autocast(lower: torch.dtype | None) -> Iterator[None]:
    """Inside, `autocasting` says of `meta` what it would say of the device that is emulated there."""
    token = _ON_META.set(lower)
    try:
        yield
    finally:
        _ON_META.reset(token)


def computing_dtype(device: torch.device, dtype: torch.dtype) -> str:
    """The dtype of the weights, and what autocast computes in: `float32`, or `float32, bfloat16 autocast`."""
    chosen = arithmetic_dtype(device, dtype)
    names = [str(dtype), *([f"{chosen} autocast"] if chosen else [])]
    return ", ".join(name.removeprefix("torch.") for name in names)


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that a clock read afterwards counts all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_size(batch: Batch) -> int:
    """Rows times padded tokens."""
    return batch.inputs["input_ids"].numel()


def moved(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """The arguments of the model's forward pass on `device`, labels included."""
    tensors = {**batch.inputs, "labels": batch.labels}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def on_host(value: Any, copy: bool) -> Any:
    """Nested mappings and sequences with their tensors detached and on the CPU; `copy` those that are there already."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=copy)
    if isinstance(value, Mapping):
        return {key: on_host(one, copy) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(one, copy) for one in value)
    return value


def batch_load(batch: Batch) -> float:
    """A measure of the memory that a batch takes: its size, and of equal ones more where padding needs a mask."""
    return batch_size(batch) + (0.5 if batch.tokens < batch_size(batch) else 0.0)
