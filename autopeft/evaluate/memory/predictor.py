"""Foretelling the training memory of candidates, without weights and without training."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from autopeft.domain.candidate import Candidate
from autopeft.domain.memory import Prediction
from autopeft.evaluate.memory.allocator import simulated
from autopeft.evaluate.memory.composition import Course, Library, Piece, Sizes, Span, composed
from autopeft.evaluate.memory.course import first_steps
from autopeft.evaluate.memory.kinds import EVERYTHING, Kind, Pattern, first_of_each, kinds_of, shape_of, signatures
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.step import Held, Timeline
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import METHODS

_ROUNDS = 3
"""So often a candidate is looked at anew after a trace: the first may tell that its embeddings train."""


class StepPredictor:
    """Foretells the heaviest step of candidates on one model, for one setup."""

    def __init__(self, model: MetaModel, setup: Setup) -> None:
        self._model = model
        self.setup = setup
        self._signatures = signatures(model.layout)
        self._library = Library()
        self._below: dict[Hashable, bool] = {}
        self._wholes: dict[Hashable, Prediction] = {}
        self.traces = 0
        """How many models were traced so far."""

    def predict(self, candidate: Candidate, pattern: Pattern = EVERYTHING) -> Prediction:
        """The step's memory, put together from blocks of known kinds; those that are new are traced first.

        Raises:
            As `MetaModel.timeline`.
        """
        if any(not METHODS[one.method].facts.takes_layers for one in candidate.insertions):
            return self._whole(candidate, pattern)
        for _ in range(_ROUNDS):
            kinds = self._kinds(candidate, pattern)
            found = self._composed(candidate, kinds)
            if found is not None:
                return found
            layers = first_of_each(kinds)
            timeline = self._model.timeline(candidate, self.setup, layers, pattern)
            self.traces += 1
            self._learn(candidate, [kinds[index] for index in layers], timeline)
        return self.traced(candidate, pattern)

    def _whole(self, candidate: Candidate, pattern: Pattern) -> Prediction:
        """Of a method that has a part for every layer outside the layers: always of the whole model."""
        key = (_structures(candidate), _sizes(candidate), pattern)
        if key not in self._wholes:
            self._wholes[key] = self.traced(candidate, pattern)
        return self._wholes[key]

    def traced(self, candidate: Candidate, pattern: Pattern = EVERYTHING) -> Prediction:
        """The same from a trace of the whole model; slower."""
        self.traces += 1
        return prediction_of(self._model.timeline(candidate, self.setup, None, pattern))

    def _kinds(self, candidate: Candidate, pattern: Pattern) -> list[Kind]:
        below = self._below.get(_structures(candidate), False)
        return kinds_of(candidate, self._model.layout, self._signatures, pattern, below)

    def _learn(self, candidate: Candidate, kinds: Sequence[Kind], timeline: Timeline) -> None:
        self._below[_structures(candidate)] = timeline.reached[0]
        nothing = np.zeros(0)
        for index, kind in enumerate(kinds):
            actual = Kind(kind.structure, kind.sizes, kind.trains, timeline.reached[index])
            held = np.array(timeline.blocks[index].numbers())
            backward = timeline.backward.get(index, nothing)
            self._library.add(actual.key, kind.sizes, Piece((held, timeline.forward[index], backward)))
        actual_kinds = [
            Kind(kind.structure, kind.sizes, kind.trains, reached)
            for kind, reached in zip(kinds, timeline.reached, strict=True)
        ]
        key, sizes = _ends(actual_kinds)
        parts = (timeline.before, timeline.between, timeline.after)
        self._library.add(("ends", key), sizes, Piece(parts))
        height = Span.of(timeline.update).height
        if self.setup.target == "cuda":
            trained = timeline.outside.trainable_bytes + sum(held.trainable_bytes for held in timeline.blocks)
            height /= max(1.0, trained)
        outside = np.array([*timeline.outside.numbers(), timeline.head_gradients, timeline.inputs, height])
        self._library.add(("outside", _structures(candidate)), _sizes(candidate), Piece((outside,)))

    def _composed(self, candidate: Candidate, kinds: Sequence[Kind]) -> Prediction | None:
        key, sizes = _ends(kinds)
        ends = self._library.at(("ends", key), sizes)
        outside = self._library.at(("outside", _structures(candidate)), _sizes(candidate))
        pieces: dict[tuple[Hashable, Sizes], tuple[Held, Span, Span]] = {}
        for kind in kinds:
            if (kind.key, kind.sizes) not in pieces:
                piece = self._library.at(kind.key, kind.sizes)
                if piece is None:
                    return None
                held, forward, backward = piece.arrays
                pieces[kind.key, kind.sizes] = (Held.of(held), Span.of(forward), Span.of(backward))
        if ends is None or outside is None:
            return None
        blocks = [pieces[kind.key, kind.sizes] for kind in kinds]
        total = Held.of(outside.arrays[0][:-3])
        trained_outside = total.trainable_bytes
        for block, _, _ in blocks:
            total += block
        head_gradients, inputs, height = (float(one) for one in outside.arrays[0][-3:])
        if self.setup.target == "cuda":
            height *= total.trainable_bytes
        before, between, after = (Span.of(part) for part in ends.arrays)
        goes_back = [index for index, kind in enumerate(kinds) if kind.trains or kind.reached]
        upward = [block[1] for block in blocks]
        course = composed(
            before,
            upward,
            between,
            [(index, blocks[index][2]) for index in reversed(goes_back)],
            after,
            Span(0.0, height),
            [block[0].trainable_bytes if kind.trains else 0.0 for block, kind in zip(blocks, kinds, strict=True)],
            (head_gradients, trained_outside),
        )
        return _prediction(total, inputs, course, upward)


def _structures(candidate: Candidate) -> Hashable:
    return tuple(shape_of(insertion)[0] for insertion in candidate.insertions)


def _sizes(candidate: Candidate) -> Sizes:
    return tuple(size for insertion in candidate.insertions for size in shape_of(insertion)[1])


def _ends(kinds: Sequence[Kind]) -> tuple[Hashable, Sizes]:
    """What the parts outside the blocks depend on: the first block, the last, and the lowest that trains."""
    lowest = next((kind for kind in kinds if kind.trains or kind.reached), kinds[-1])
    chosen = (kinds[0], lowest, kinds[-1])
    return tuple(kind.key for kind in chosen), tuple(size for kind in chosen for size in kind.sizes)


def prediction_of(timeline: Timeline, workspace: int | None = None, before: Timeline | None = None) -> Prediction:
    """What a whole trace says.

    With a `workspace` in bytes also what CUDA's caching allocator would hold, for two such steps or, where one `before`
    is given, for that and this one, the cache given back between them.
    """
    held = timeline.outside
    for block in timeline.blocks:
        held += block
    forward = [Span.of(part) for part in timeline.forward]
    gradients = [
        block.trainable_bytes if index in timeline.backward else 0.0 for index, block in enumerate(timeline.blocks)
    ]
    course = composed(
        Span.of(timeline.before),
        forward,
        Span.of(timeline.between),
        [(index, Span.of(timeline.backward[index])) for index in sorted(timeline.backward, reverse=True)],
        Span.of(timeline.after),
        Span.of(timeline.update),
        gradients,
        timeline.outside_gradients,
    )
    found = _prediction(held, timeline.inputs, course, forward)
    if workspace is None:
        return found
    events = first_steps((before or timeline, timeline), emptied=True)
    reserved = simulated(events, workspace).reserved_peak
    return found.model_copy(update={"train_peak_reserved_bytes": reserved})


def _prediction(held: Held, inputs: float, course: Course, forward: Sequence[Span]) -> Prediction:
    """Split a peak into what it consists of."""
    total = round(held.bytes + inputs + course.peak)
    parts = [
        round(one)
        for one in (
            *(held.weights, held.added, held.state, inputs),
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
        layer_activation_bytes=tuple(round(span.total) for span in forward),
    )
