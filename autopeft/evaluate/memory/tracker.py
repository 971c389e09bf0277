"""Counting live bytes without an allocator that reports them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of all tensor storages that are alive, while it is entered; runs the same kernels.

    A storage counts once, whatever views or saved tensors share it, from the operation that makes it until its last
    owner lets go of it. What exists before (weights, optimiser state, the batch) is given to `register`. Memory inside
    a kernel is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: dict[int, tuple[weakref.ref[Any], int]] = {}

    def register(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._see(tensor)

    def close(self) -> None:
        """Forget every storage; later deaths change nothing."""
        self._storages.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.layout is torch.sparse_coo:
            self.register((tensor._indices(), tensor._values()))
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._storages.get(key)
        if known is not None and known[0]() is not None:
            if known[1] != size:  # resized in place
                self._storages[key] = (known[0], size)
                self._add(size - known[1])
            return
        if known is not None:
            self._died(key, known[0])
        reference = weakref.ref(storage, functools.partial(self._died, key))
        self._storages[key] = (reference, size)
        self._add(size)

    def _died(self, key: int, reference: weakref.ref[Any]) -> None:
        # An address can be taken again before the old storage's callback runs; only its own entry may go.
        known = self._storages.get(key)
        if known is not None and known[0] is reference:
            del self._storages[key]
            self._add(-known[1])

    def _add(self, size: int) -> None:
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
