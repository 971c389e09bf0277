"""Where in the events of a step its parts begin."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autopeft.evaluate.memory.tracker import Event

Deltas = NDArray[np.float64]
"""Bytes that become live (or, negative, are given up), one after another."""


class Recorder:
    """Marks in a tracker's events where blocks begin and end, forwards and backwards."""

    def __init__(self, blocks: Sequence[nn.Module], events: list[Event]) -> None:
        self._blocks = blocks
        self._events = events
        self.marks: dict[str, int] = {}
        self.reached = [False] * len(blocks)
        self.gradients = 0.0
        """Bytes of the parameters given to `watch` that have a gradient when the blocks' backward pass begins."""
        self._watched: Sequence[nn.Parameter] = ()
        self._handles: list[Any] = []
        last = len(blocks) - 1
        for index, block in enumerate(blocks):
            self._handles.append(block.register_forward_pre_hook(self._entering(index), with_kwargs=True))
        self._handles.append(blocks[last].register_forward_hook(self._leaving(last)))

    def mark(self, name: str) -> None:
        """Here; the first time counts, since a checkpointed block runs twice."""
        self.marks.setdefault(name, len(self._events))

    def watch(self, parameters: Sequence[nn.Parameter]) -> None:
        """These will be asked for `gradients`."""
        self._watched = parameters

    def forget(self) -> None:
        """Begin anew: what ran so far does not belong to the recording."""
        self.marks.clear()

    def remove(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()

    def _entering(self, index: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if f"forward {index}" in self.marks:
                return
            hidden = next((one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)), None)
            if hidden is not None and hidden.requires_grad:
                self.reached[index] = True
                # The gradient of what goes in is there: the block above, or this one's input, is through.
                self._handles.append(hidden.register_hook(lambda _: self.mark(f"backward {index - 1}")))
            self.mark(f"forward {index}")

        return hook

    def _leaving(self, index: int) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            if "out" in self.marks:
                return
            found = output if isinstance(output, torch.Tensor) else output[0]
            if found.requires_grad:
                self._handles.append(found.register_hook(lambda _: self._turning(index)))
            self.mark("out")

        return hook

    def _turning(self, last: int) -> None:
        self.gradients = sum(
            float(part.numel() * part.element_size()) for part in self._watched if part.grad is not None
        )
        self.mark(f"backward {last}")

    def carry_over(self, returned: int) -> int:
        """What the step leaves alive the step before left too, until the model returned after so many events.

        Returns how many storages these are.
        """
        start = self.marks["start"]
        made = {event.storage: event.size for event in self._events[start:] if event.size > 0}
        for event in self._events[start:]:
            if event.size < 0:
                made.pop(event.storage, None)
        # The numbers of storages count from 1, so that their negatives are free.
        born = [Event(-storage, size) for storage, size in made.items()]
        died = [Event(-storage, -size) for storage, size in made.items()]
        self._events[returned:returned] = died
        self._events[start:start] = born
        for name, place in self.marks.items():
            if name != "start":
                later = name.startswith(("uncast", "backward", "update"))
                self.marks[name] = place + len(born) * (2 if later else 1)
        return len(born)

    def parts(self) -> dict[str, Deltas]:
        """The deltas of each part, by the names of `Timeline.order`."""
        names = {"start": "before", "out": "loss", "uncast ends": "between", "backward -1": "after"}
        order = sorted(self.marks.items(), key=lambda item: item[1])
        sizes = np.array([event.size for event in self._events], dtype=np.float64)
        found = {}
        for (name, start), (_, end) in zip(order, [*order[1:], ("", len(sizes))], strict=True):
            found[names.get(name, name)] = sizes[start:end]
        return found

    def uncast(self) -> tuple[list[Deltas], Deltas]:
        """Of the part "uncast", what was made in the forward pass of each block, and what elsewhere."""
        borders = [self.marks[f"forward {index}"] for index in range(len(self._blocks))]
        start, end = self.marks["uncast"], self.marks["uncast ends"]
        born = {event.storage: place for place, event in enumerate(self._events[:start]) if event.size > 0}
        inside: list[list[float]] = [[] for _ in self._blocks]
        outside = []
        for event in self._events[start:end]:
            place = born.get(event.storage, start)
            if borders[0] <= place < self.marks["out"]:
                inside[bisect.bisect_right(borders, place) - 1].append(event.size)
            else:
                outside.append(event.size)
        return [np.array(one, dtype=np.float64) for one in inside], np.array(outside, dtype=np.float64)
