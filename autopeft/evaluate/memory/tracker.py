"""Counting live bytes without an allocator that reports them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Event(NamedTuple):
    """A storage is made or given up."""

    storage: int
    """Its number, counted from 1 in the order of birth."""
    size: int
    """Bytes; negative where it is given up."""


class _Known(NamedTuple):
    reference: weakref.ref[Any]
    size: int
    number: int


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of all tensor storages that are alive, while it is entered; runs the same kernels.

    A storage counts once, whatever views or saved tensors share it, from the operation that makes it until its last
    owner lets go of it. What exists before (weights, optimiser state, the batch) is given to `register`. Memory inside
    a kernel is not seen.
    """

    def __init__(self, events: list[Event] | None = None) -> None:
        """`events` gets every birth and death in order, where a list is given."""
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: dict[int, _Known] = {}
        self._events = events
        self._count = 0

    def register(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._see(tensor)

    def close(self) -> None:
        """Forget every storage; later deaths change nothing."""
        self._storages.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._result(func, args, dict(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def _result(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided:
            for part in _parts(tensor):
                self._see(part)
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._storages.get(key)
        if known is not None and known.reference() is not None:
            if known.size != size:  # resized in place
                self._storages[key] = known._replace(size=size)
                self._add(known.number, -known.size)
                self._add(known.number, size)
            return
        if known is not None:
            self._died(key, known.reference)
        self._count += 1
        reference = weakref.ref(storage, functools.partial(self._died, key))
        self._storages[key] = _Known(reference, size, self._count)
        self._add(self._count, size)

    def _died(self, key: int, reference: weakref.ref[Any]) -> None:
        # An address can be taken again before the old storage's callback runs; only its own entry may go.
        known = self._storages.get(key)
        if known is not None and known.reference is reference:
            del self._storages[key]
            self._add(known.number, -known.size)

    def _add(self, number: int, size: int) -> None:
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if self._events is not None and size:
            self._events.append(Event(number, size))


def apart(model: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the layers of peft keep tensors that are neither parameters nor buffers: a dictionary and a key in it.

    SHiRA's positions are such; they are on the device of the weights and live as long as these.
    """
    for module in model.modules():
        for name in getattr(module, "other_param_names", ()):
            kept = getattr(module, name, None)
            if isinstance(kept, dict):
                yield from ((kept, key) for key, value in kept.items() if isinstance(value, torch.Tensor))


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The dense tensors that a sparse one consists of."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()
