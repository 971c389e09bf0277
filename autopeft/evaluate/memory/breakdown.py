"""A step's peak and what it consists of, out of the parts that the step goes through."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.memory import Prediction
from autopeft.evaluate.memory.step import Gradients, Held, Timeline


@dataclass(frozen=True)
class Span:
    """A part of the step by its end and its height."""

    total: float
    """Bytes live after it less those before."""
    height: float
    """Most bytes live during it less those before; 0 or more."""

    @classmethod
    def of(cls, deltas: NDArray[np.float64]) -> Self:
        """Of the changes one after another."""
        return cls(float(deltas.sum()), float(np.cumsum(deltas).max(initial=0.0)))

    def scaled(self, share: float, lasting: float = 0.0) -> Span:
        """On a batch of this share of the size; `lasting` bytes that it leaves (gradients) do not depend on that."""
        made = min(lasting, self.height)
        return Span(share * (self.total - lasting) + lasting, share * (self.height - made) + made)


@dataclass(frozen=True)
class Block:
    """What a step's parts say of one layer."""

    held: Held
    forward: Span
    uncast: float
    """Of what it leaves, bytes that end with the forward pass of the model."""
    backward: Span
    gradients: Gradients
    """Those that it has in the end."""
    goes_back: bool
    """Whether the backward pass goes through it."""

    @property
    def kept(self) -> float:
        """Bytes for its backward pass."""
        return self.forward.total - self.uncast


@dataclass(frozen=True)
class Moment:
    """How a step differs from the one that was traced, beside what trains in it."""

    with_state: frozenset[int] | None = None
    """The layers that have optimiser state before it; None for all that ever train."""
    share: float = 1.0
    """The size of its batch, relative to the largest one's."""

    def within(self, other: Moment) -> bool:
        """Whether the other needs at least as much, in a step in which the same trains."""
        if other.with_state is not None and (self.with_state is None or not self.with_state <= other.with_state):
            return False
        return self.share <= other.share


@dataclass(frozen=True)
class StepParts:
    """A step, taken to pieces."""

    outside: Held
    """What belongs to no layer, or to several."""
    outside_gradient: float
    """Bytes of all gradients there."""
    head_gradient: float
    """Of them, those that are there when the backward pass of the layers begins."""
    blocks: Sequence[Block]
    inputs: float
    """Bytes of the batch."""
    before: Span
    loss: Span
    between: Span
    after: Span
    update: float
    """Height of clipping and the optimiser's step."""
    accumulates: bool = False
    """Whether all gradients are there from the start, and only added to."""

    @classmethod
    def of(cls, timeline: Timeline, *, accumulates: bool = False) -> Self:
        """Of a trace of the whole model."""
        nothing = np.zeros(0)
        return cls(
            outside=timeline.outside,
            outside_gradient=timeline.outside_gradients.bytes,
            head_gradient=timeline.head_gradients,
            blocks=[
                Block(
                    held,
                    Span.of(timeline.forward[index]),
                    -float(timeline.uncast[index].sum()),
                    Span.of(timeline.backward.get(index, nothing)),
                    timeline.gradients[index],
                    index in timeline.backward,
                )
                for index, held in enumerate(timeline.blocks)
            ],
            inputs=timeline.inputs,
            before=Span.of(timeline.before),
            loss=Span.of(timeline.loss),
            between=Span.of(timeline.between),
            after=Span.of(timeline.after),
            update=Span.of(timeline.update).height,
            accumulates=accumulates,
        )

    @property
    def gradients(self) -> float:
        """Bytes of all of them."""
        return self.outside_gradient + sum(block.gradients.bytes for block in self.blocks)

    def missing_state(self, with_state: Collection[int] | None) -> tuple[float, float]:
        """Bytes of optimiser state that is not there yet: in all, and of it what this step's update makes."""
        if with_state is None:
            return 0.0, 0.0
        lacking = [block for index, block in enumerate(self.blocks) if index not in with_state]
        return sum(one.held.state for one in lacking), sum(one.held.state for one in lacking if one.gradients.bytes)

    @cached_property
    def held(self) -> Held:
        """What is there before the step, the optimiser's state complete."""
        held = self.outside
        for block in self.blocks:
            held += block.held
        return held

    def peak_bytes(self, moment: Moment) -> float:
        """Of `prediction` the whole alone."""
        missing, made = self.missing_state(moment.with_state)
        return self.held.bytes - missing + moment.share * self.inputs + self._course(moment.share, made).peak

    def prediction(self, moment: Moment | None = None) -> Prediction:
        """The peak, and what it consists of."""
        moment = moment or Moment()
        missing, made = self.missing_state(moment.with_state)
        held = self.held
        inputs = moment.share * self.inputs
        course = self._course(moment.share, made)
        state = held.state - missing + course.state
        total = round(held.bytes - missing + inputs + course.peak)
        parts = [
            round(one)
            for one in (
                *(held.weights, held.added, state, inputs),
                *(course.gradients, max(0.0, course.kept), course.head),
            )
        ]
        return Prediction(
            train_peak_bytes=total,
            trainable_parameters=held.trainable,
            where=course.where,
            weights_bytes=parts[0],
            peft_bytes=parts[1],
            optimizer_bytes=parts[2],
            inputs_bytes=parts[3],
            gradient_bytes=parts[4],
            activation_bytes=parts[5],
            head_bytes=parts[6],
            temporary_bytes=total - sum(parts),
            layer_activation_bytes=tuple(round(moment.share * block.kept) for block in self.blocks),
        )

    def _course(self, share: float, made_state: float) -> _Course:
        """Go through the step: embeddings, layers, head and loss, layers again downwards, embeddings, optimiser."""
        gradients = self.gradients if self.accumulates else 0.0
        live, kept, head = gradients, 0.0, 0.0
        best = _Course(live, "start", 0.0, gradients, 0.0, 0.0)

        def passed(span: Span, where: str, made_here: float = 0.0, state: float = 0.0) -> None:
            nonlocal live, best
            if live + span.height + state > best.peak:
                best = _Course(live + span.height + state, where, kept, gradients, max(0.0, head or made_here), state)
            live += span.total

        def new(gradient: float) -> float:
            return 0.0 if self.accumulates else gradient

        passed(self.before.scaled(share), "embeddings")
        for index, block in enumerate(self.blocks):
            span = block.forward.scaled(share)
            passed(span, f"forward pass of layer {index}")
            kept += span.total
        loss = self.loss.scaled(share)
        passed(loss, "head and loss", loss.height)
        ended = share * sum(block.uncast for block in self.blocks)
        live, kept = live - ended, kept - ended
        between = self.between.scaled(share, new(self.head_gradient))
        passed(between, "head and loss", loss.total + between.height)
        gradients += new(self.head_gradient)
        head = loss.total + between.total - new(self.head_gradient)
        for index in reversed(range(len(self.blocks))):
            block = self.blocks[index]
            if block.goes_back:
                made = new(block.gradients.bytes)
                passed(block.backward.scaled(share, made), f"backward pass of layer {index}")
                kept -= share * block.kept
                gradients += made
        rest = new(self.outside_gradient - self.head_gradient)
        passed(self.after.scaled(share, rest), "backward pass of the embeddings")
        kept = 0.0
        gradients += rest
        passed(Span(0.0, self.update), "optimiser step", state=made_state)
        return best


@dataclass(frozen=True)
class _Course:
    """Where the peak lies and what there is."""

    peak: float
    """Most bytes live above those at the step's start."""
    where: str
    kept: float
    """Of them, what layers keep for the backward pass."""
    gradients: float
    """Of them, gradients of parameters."""
    head: float
    """Of them, what is made between the last layer and its backward pass: logits, loss and their gradients."""
    state: float
    """Of them, optimiser state that the update makes."""
