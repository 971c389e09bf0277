"""The file that a training is gone on with: tensors and JSON values as one safetensors file, checked when it is read.

A kill at any moment leaves the old file or the new one. What is read back is what was written, or is refused: a sum
over everything in it stands in its header.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from autopeft.domain.trial import UNFINISHED

FORMAT = 1
"""Raise it where a state is written that this code could not read right."""
_TENSOR, _ITEMS, _TUPLE = "$tensor", "$items", "$tuple"


class CheckpointError(ValueError):
    """A file that cannot be gone on with; the text says why in a few words, without a capital."""


def write_checkpoint(path: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Put a state into the place of what lies at `path`, whole and on the disk, or leave that as it is.

    Args:
        path: Of the file; its folder is made where there is none.
        identity: Of what the state is a state of; whoever reads it must know it.
        state: Nested mappings, sequences, tensors and JSON scalars. Keys may be numbers.

    Raises:
        OSError: where it cannot be written. TypeError: for a value of another kind.
    """
    packing = _Packing()
    text = json.dumps({"format": FORMAT, "identity": identity, "state": packing.packed(state, "state")})
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, because the library too puts files beside the one that it writes.
    folder = path.parent / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
    unfinished = folder / path.name
    folder.mkdir()
    try:
        header = {"checkpoint": text, "sha256": _sum(text, packing.tensors)}
        try:
            save_file(packing.tensors, unfinished, metadata=header)
        except SafetensorError as error:  # what the library makes of a full disk
            raise OSError(str(error)) from error
        to_disk(unfinished)
        os.replace(unfinished, path)
        to_disk(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """The state that was written, its tensors on the CPU and each in memory of its own.

    Raises:
        FileNotFoundError: where there is none. CheckpointError: where it is damaged, or of something else.
    """
    with _damage():
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Cloned, because the file's tensors are views of one mapped piece of memory.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text = header["checkpoint"]
        intact = header["sha256"] == _sum(text, tensors)
        record = json.loads(text) if intact else {}
    if not intact:
        raise CheckpointError("it is damaged: its checksum is another")
    if record["format"] != FORMAT or record["identity"] != identity:
        raise CheckpointError("it is of another candidate, recipe, model, data, device or version of a library")
    found: dict[str, Any] = _unpacked(record["state"], tensors)
    return found


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that was killed while it wrote left in a folder."""
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not only in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_of(state: Any) -> int:
    """What the tensors of a state take."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(bytes_of(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(bytes_of(value) for value in state)
    return 0


@contextmanager
def _damage() -> Iterator[None]:
    """Whatever goes wrong inside says that the file is damaged, unless it is not there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"it is damaged: {said}") from None


def _sum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the JSON text, and name, dtype, shape and bytes of every tensor."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


class _Packing:
    """Turns a state into JSON and tensors that safetensors takes: on the CPU, contiguous, none in another's memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._held: set[int] = set()

    def packed(self, value: Any, name: str) -> Any:
        """A value as JSON, in which a tensor is its name."""
        if isinstance(value, torch.Tensor):
            return {_TENSOR: self._put(value, name)}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: self.packed(one, f"{name}/{key}") for key, one in value.items()}
            return {_ITEMS: [[key, self.packed(one, f"{name}/{key}")] for key, one in value.items()]}
        if isinstance(value, tuple):
            return {_TUPLE: [self.packed(one, f"{name}/{place}") for place, one in enumerate(value)]}
        if isinstance(value, list):
            return [self.packed(one, f"{name}/{place}") for place, one in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")

    def _put(self, value: torch.Tensor, name: str) -> str:
        tensor = value.detach().to("cpu").contiguous()
        address = tensor.untyped_storage().data_ptr()
        if address in self._held:
            tensor = tensor.clone()
        elif address:
            self._held.add(address)
        key = f"{len(self.tensors)} {name}"
        self.tensors[key] = tensor
        return key


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _ITEMS in value:
        return {key: _unpacked(one, tensors) for key, one in value[_ITEMS]}
    if _TUPLE in value:
        return tuple(_unpacked(one, tensors) for one in value[_TUPLE])
    return {key: _unpacked(one, tensors) for key, one in value.items()}
