"""One optimiser step on the `meta` device, recorded storage by storage and cut at the borders of the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from autopeft.evaluate.arithmetic import emulated_autocast
from autopeft.evaluate.memory.emulation import Emulated, MetaTracker, on_meta, without_values
from autopeft.evaluate.memory.recorder import Deltas, Recorder
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.tracker import Event, apart


@dataclass(frozen=True)
class Held:
    """What is there before the step, by where it belongs."""

    weights: float = 0.0
    """Bytes of the base's parameters and buffers."""
    added: float = 0.0
    """Bytes of parameters and buffers that a method added."""
    state: float = 0.0
    """Bytes of optimiser state."""
    trainable: int = 0
    """Parameters."""
    trainable_bytes: float = 0.0

    def __add__(self, other: Held) -> Held:
        return Held.of([mine + others for mine, others in zip(self.numbers(), other.numbers(), strict=True)])

    @property
    def bytes(self) -> float:
        """All of them."""
        return self.weights + self.added + self.state

    def numbers(self) -> tuple[float, ...]:
        """To be added up and weighted; `of` reads them."""
        return (self.weights, self.added, self.state, float(self.trainable), self.trainable_bytes)

    @classmethod
    def of(cls, numbers: Sequence[float] | Deltas) -> Held:
        """From `numbers`."""
        weights, added, state, trainable, trainable_bytes = (float(one) for one in numbers)
        return cls(weights, added, state, round(trainable), trainable_bytes)


class Gradients(NamedTuple):
    """Of some parameters, in bytes."""

    bytes: float = 0.0
    """All of them."""
    largest: float = 0.0
    """One of them."""


@dataclass(frozen=True)
class Cuts:
    """Places in the events of a step. First come the births of weights, adapters and buffers."""

    state: int
    """Births of optimiser state begin, then those of the batch."""
    inputs: int
    start: int
    """The step begins: with the births of what the step before left, where its outputs are held."""
    carried: int
    """So many of them."""
    update: int
    """Clipping and the optimiser's step begin."""
    cleared: int
    """The gradients are given up."""


@dataclass
class Timeline:
    """One step, in the order in which it happens; layers as in the traced model."""

    outside: Held
    """What belongs to no block, or to several."""
    blocks: list[Held]
    inputs: float
    """Bytes of the batch."""
    before: Deltas
    """From the start to the first block: embeddings, masks."""
    forward: list[Deltas]
    """Of each block."""
    loss: Deltas
    """From the last block forwards to the end of the forward pass: head and loss."""
    uncast: list[Deltas]
    """What each block gives up then: autocast's copies of trained weights that its backward pass does not need."""
    between: Deltas
    """From there to the first block backwards: the gradients of head and loss."""
    backward: dict[int, Deltas]
    """Of each block that the backward pass goes through."""
    reached: list[bool]
    """Whether a gradient goes through the input of each block."""
    after: Deltas
    """What the backward pass does below the blocks."""
    head_gradients: float
    """Bytes of gradients of parameters outside the blocks that are there when the blocks' backward pass begins."""
    gradients: list[Gradients]
    """Those that each block has in the end."""
    outside_gradients: Gradients
    """All that lie outside the blocks."""
    update: Deltas
    """Clipping and the optimiser's step, until the gradients are gone."""
    events: list[Event] = field(default_factory=list)
    """Every birth and death, those of what was there before included, for a model of an allocator."""
    cuts: Cuts = field(default_factory=lambda: Cuts(0, 0, 0, 0, 0, 0))
    """Where in the events what begins."""

    @property
    def start_bytes(self) -> float:
        """Live before the forward pass."""
        return self.outside.bytes + sum(block.bytes for block in self.blocks) + self.inputs

    def order(self) -> Iterator[tuple[str, Deltas]]:
        """Every part by name, in order of time."""
        yield "before", self.before
        for index, part in enumerate(self.forward):
            yield f"forward {index}", part
        yield "loss", self.loss
        yield "uncast", np.concatenate([np.zeros(0), *self.uncast])
        yield "between", self.between
        for index in sorted(self.backward, reverse=True):
            yield f"backward {index}", self.backward[index]
        yield "after", self.after
        yield "update", self.update

    def peak_bytes(self) -> float:
        """The most that is live at once."""
        deltas = np.concatenate([part for _, part in self.order()])
        return self.start_bytes + max(0.0, float(np.cumsum(deltas).max(initial=0.0)))


def traced_step(
    model: Any,
    blocks: Sequence[nn.Module],
    owned: Callable[[torch.Tensor], bool],
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, torch.Tensor],
    setup: Setup,
    *,
    gate: Callable[[], None] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
) -> Timeline:
    """Train one step of a model on `meta` and record it; the optimiser's state is there from the start.

    Args:
        model: Takes the batch and returns an output with a `loss`.
        blocks: The layers, in the order in which they run.
        owned: Whether a tensor belongs to the base model.
        optimizer: Of everything that may train.
        batch: Arguments of the forward pass.
        setup: Of the step.
        gate: Called once the optimiser has its state: a policy closes layers here.
        after_step: Called between the optimiser's step and the end of the gradients.
    """
    parameters = [part for group in optimizer.param_groups for part in group["params"] if part.requires_grad]
    with on_meta(setup.padded):
        _fill_state(optimizer, parameters, setup)
    gate()
    events: list[Event] = []
    tracker = MetaTracker(events, setup.padded)
    recorder = Recorder(blocks, events)
    emulated = Emulated(setup.target, setup.lower)
    try:
        outside, held = _holdings(model, blocks, owned, optimizer, parameters)
        tracker.register(_tensors_of(model))
        state = len(events)
        tracker.register(_state_of(optimizer))
        put_in = len(events)
        before_inputs = tracker.live_bytes
        tracker.register(batch.values())
        inputs = tracker.live_bytes - before_inputs
        inside = {id(part) for block in blocks for part in block.parameters()}
        recorder.watch([part for part in parameters if id(part) not in inside])
        if setup.accumulates:
            with on_meta(setup.padded), emulated_autocast(setup.lower), Emulated(setup.target, setup.lower):
                model(**batch).loss.backward()
            recorder.forget()
            tracker.register(part.grad for part in parameters if part.grad is not None)
        recorder.mark("start")
        with without_values(), emulated_autocast(setup.lower), emulated, tracker:
            output = model(**batch)
            returned = len(events)
            loss = output.loss
            if not setup.holds_outputs:
                del output
            recorder.mark("uncast")
            emulated.forget_casts()
            recorder.mark("uncast ends")
            if loss.requires_grad:
                _go_back(loss, setup)
            del loss
            recorder.mark("update")
            gradients = _gradients_of(blocks, parameters)
            if setup.clip:
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            after_step()
            recorder.mark("update ends")
            optimizer.zero_grad(set_to_none=True)
    finally:
        recorder.remove()
    carried = recorder.carry_over(returned) if setup.holds_outputs else 0
    parts, marks = recorder.parts(), recorder.marks
    uncast, uncast_outside = recorder.uncast()
    nothing = np.zeros(0)
    timeline = Timeline(
        outside=outside,
        blocks=held,
        inputs=inputs,
        before=parts["before"],
        forward=[parts[f"forward {index}"] for index in range(len(blocks))],
        loss=np.concatenate([parts["loss"], uncast_outside]),
        uncast=uncast,
        between=parts["between"],
        backward={index: parts[f"backward {index}"] for index in range(len(blocks)) if f"backward {index}" in parts},
        reached=recorder.reached,
        after=parts.get("after", nothing),
        head_gradients=recorder.gradients,
        gradients=gradients[:-1],
        outside_gradients=gradients[-1],
        update=np.concatenate([parts["update"], parts["update ends"]]),
        events=events,
        cuts=Cuts(state, put_in, marks["start"], carried, marks["update"], marks["update ends"]),
    )
    tracker.close()
    return timeline


def _go_back(loss: torch.Tensor, setup: Setup) -> None:
    """The backward pass; where blocks compute anew in it, with autocast and kernels as in the forward pass."""
    if setup.checkpointing:
        # What `loss.backward()` ends in. The method itself runs with the modes of the caller switched off, and a block
        # would then be computed anew in another way than it was at first.
        engine: Any = torch.autograd.Variable._execution_engine
        engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:
        loss.backward()


def _fill_state(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], setup: Setup) -> None:
    """Let the optimiser make its state, as after a first step."""
    for group in optimizer.param_groups:
        if "foreach" in group:
            group["foreach"] = setup.target == "cuda"
    for part in parameters:
        part.grad = torch.empty_like(part)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _state_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _gradients_of(blocks: Sequence[nn.Module], parameters: Iterable[nn.Parameter]) -> list[Gradients]:
    """The gradients that are there, by block, and at last outside of all or in several."""
    places: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for part in block.parameters():
            places[id(part)] = index if places.setdefault(id(part), index) == index else -1
    found = [Gradients()] * (len(blocks) + 1)
    for part in parameters:
        if part.grad is not None:
            size = float(part.grad.untyped_storage().nbytes())
            place = places.get(id(part), -1)
            found[place] = Gradients(found[place].bytes + size, max(found[place].largest, size))
    return found


def _tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    yield from (kept[key] for kept, key in apart(module))


def _holdings(
    model: Any,
    blocks: Sequence[nn.Module],
    owned: Callable[[torch.Tensor], bool],
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
) -> tuple[Held, list[Held]]:
    """Bytes and counts by block; what several blocks share, or none has, lies outside."""
    trained = {id(part) for part in parameters}
    places: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for tensor in _tensors_of(block):
            key = tensor.untyped_storage()._cdata
            places[key] = index if places.setdefault(key, index) == index else -1
    found = [Held() for _ in blocks]
    outside, seen, counted = Held(), set(), set()
    for tensor in _tensors_of(model):
        key = tensor.untyped_storage()._cdata
        held = Held()
        if key not in seen:
            seen.add(key)
            size = float(tensor.untyped_storage().nbytes())
            held += Held(weights=size) if owned(tensor) else Held(added=size)
        if id(tensor) in trained and id(tensor) not in counted:
            counted.add(id(tensor))
            size = float(tensor.numel() * tensor.element_size())
            state = sum(
                float(value.untyped_storage().nbytes())
                for value in optimizer.state.get(tensor, {}).values()
                if isinstance(value, torch.Tensor)
            )
            held += Held(state=state, trainable=tensor.numel(), trainable_bytes=size)
        place = places.get(key, -1)
        if place < 0:
            outside += held
        else:
            found[place] += held
    return outside, found
