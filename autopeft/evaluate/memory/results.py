"""What operations on the `meta` device return, computed once per operation and shapes.

On `meta` a result is its shape, strides and dtype, which depend on those of the arguments alone. torch computes many of
them in Python, in a tenth to a whole millisecond each; the layers of a model ask for the same ones over and over.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch

_ATEN = torch.ops.aten
_OTHERWISE = frozenset((_ATEN.set_, _ATEN.resize_, _ATEN._local_scalar_dense, _ATEN._resize_output_))
"""Operations whose effect is not told by shapes."""
_MOST = 1 << 16
"""So many results are kept before all are forgotten."""


class _UnknownError(Exception):
    """An argument that a key cannot tell: not on `meta`, not dense, a subclass."""


class _Made(NamedTuple):
    """A new tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _Given(NamedTuple):
    """An argument that was written to."""

    place: int


_Part = _Made | _Given | None


class Results:
    """Runs operations on `meta`, each for the first time only; what comes back is new wherever it was at first."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Part | tuple[_Part, ...] | list[_Part]] = {}
        self._never: set[Any] = set()
        self.computed = 0
        """So many operations were run."""
        self.recalled = 0
        """So many were not, since their result was known."""

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`func(*args, **kwargs)`."""
        if _only_writes(func) and all(tensor.is_meta for tensor in args[0]):
            self.recalled += 1
            return None
        if func in self._never:
            self.computed += 1
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())))
        except _UnknownError:
            self.computed += 1
            return func(*args, **kwargs)
        known = self._known.get(key, self)
        if known is not self:
            self.recalled += 1
            return _again(known, args)
        self.computed += 1
        return self._first(func, args, kwargs, key)

    def _first(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Hashable) -> Any:
        tensors = list(_tensors((args, kwargs)))
        before = [tensor.untyped_storage()._cdata for tensor in tensors]
        result = func(*args, **kwargs)
        after = [tensor.untyped_storage()._cdata for tensor in tensors]
        if func.overloadpacket in _OTHERWISE or _is_view(func):
            self._never.add(func)
            return result
        try:
            if before != after or key != (func, _key(args), _key(tuple(kwargs.items()))):
                raise _UnknownError
            recipe = _recipe(result, args, set(before))
        except _UnknownError:
            self._never.add(func)
            return result
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = recipe
        return result


@functools.cache
def _only_writes(func: Any) -> bool:
    """Whether it writes into its first argument, a list of tensors, and returns nothing: on `meta` nothing changes."""
    return func.namespace == "aten" and func._opname.startswith("_foreach_") and not func._schema.returns


def _is_view(func: Any) -> bool:
    """Whether a result shares the storage of an argument that is only read."""
    returned = (one.alias_info for one in func._schema.returns)
    return any(info is not None and not info.is_write for info in returned)


def _key(value: Any) -> Hashable:
    kind = type(value)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        if not value.is_meta or value.layout is not torch.strided or value.is_conj() or value.is_neg():
            raise _UnknownError
        return (value.shape, value.stride(), value.storage_offset(), value.dtype)
    if kind is tuple or kind is list:
        return (kind, *map(_key, value))
    if kind in (int, float, bool):
        return (kind, value)  # 1, 1.0 and True are equal, and lead to different dtypes
    if value is None or kind in (str, torch.dtype, torch.device, torch.layout, torch.memory_format):
        return value
    raise _UnknownError


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _recipe(result: Any, args: tuple[Any, ...], storages: set[int]) -> Any:
    """How to make the result again.

    Raises:
        _UnknownError: where it is not told by its shape, or shares memory with something.
    """
    if result is None:
        return None
    if type(result) in (tuple, list):
        return type(result)(_recipe(one, args, storages) for one in result)
    for place, one in enumerate(args):
        if one is result:
            return _Given(place)
    if type(result) is not torch.Tensor or not result.is_meta or result.layout is not torch.strided:
        raise _UnknownError
    made = _Made(tuple(result.shape), result.stride(), result.dtype)
    storage = result.untyped_storage()
    alone = storage._cdata not in storages
    storages.add(storage._cdata)
    plain = result.storage_offset() == 0 and not (result.is_conj() or result.is_neg())
    if not alone or not plain or storage.nbytes() != made.tensor().untyped_storage().nbytes():
        raise _UnknownError
    return made


def _again(known: Any, args: tuple[Any, ...]) -> Any:
    kind = type(known)
    if kind is _Made:
        return known.tensor()
    if kind is _Given:
        return args[known.place]
    if known is None:
        return None
    return kind(_again(one, args) for one in known)
