"""Foretelling the training memory of candidates, without weights and without training."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from autopeft.domain.candidate import Candidate
from autopeft.domain.memory import Prediction
from autopeft.evaluate.memory.allocator import simulated
from autopeft.evaluate.memory.breakdown import Block, Span, StepParts
from autopeft.evaluate.memory.composition import Library, Piece, Sizes
from autopeft.evaluate.memory.course import first_steps
from autopeft.evaluate.memory.kinds import EVERYTHING, Kind, Pattern, first_of_each, kinds_of, shape_of, signatures
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.step import Gradients, Held, Timeline
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
        self._wholes: dict[Hashable, StepParts] = {}
        self.traces = 0
        """How many models were traced so far."""

    def predict(self, candidate: Candidate, pattern: Pattern = EVERYTHING) -> Prediction:
        """The step's memory, put together from blocks of known kinds; those that are new are traced first.

        Raises:
            As `MetaModel.timeline`.
        """
        return self.parts(candidate, pattern).prediction()

    def parts(self, candidate: Candidate, pattern: Pattern = EVERYTHING) -> StepParts:
        """What `predict` is a sum of.

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
        return self._traced(candidate, pattern)

    def _whole(self, candidate: Candidate, pattern: Pattern) -> StepParts:
        """Of a method that has a part for every layer outside the layers: always of the whole model."""
        key = (_structures(candidate), _sizes(candidate), pattern)
        if key not in self._wholes:
            self._wholes[key] = self._traced(candidate, pattern)
        return self._wholes[key]

    def traced(self, candidate: Candidate, pattern: Pattern = EVERYTHING) -> Prediction:
        """The same from a trace of the whole model; slower."""
        return self._traced(candidate, pattern).prediction()

    def _traced(self, candidate: Candidate, pattern: Pattern) -> StepParts:
        self.traces += 1
        timeline = self._model.timeline(candidate, self.setup, None, pattern)
        return StepParts.of(timeline, accumulates=self.setup.accumulates)

    def _kinds(self, candidate: Candidate, pattern: Pattern) -> list[Kind]:
        below = self._below.get(_structures(candidate), False)
        return kinds_of(candidate, self._model.layout, self._signatures, pattern, below)

    def _learn(self, candidate: Candidate, kinds: Sequence[Kind], timeline: Timeline) -> None:
        self._below[_structures(candidate)] = timeline.reached[0]
        nothing = np.zeros(0)
        for index, kind in enumerate(kinds):
            actual = Kind(kind.structure, kind.sizes, kind.trains, timeline.reached[index])
            held = np.array([*timeline.blocks[index].numbers(), *timeline.gradients[index]])
            backward = timeline.backward.get(index, nothing)
            parts = (held, timeline.forward[index], timeline.uncast[index], backward)
            self._library.add(actual.key, kind.sizes, Piece(parts))
        actual_kinds = [
            Kind(kind.structure, kind.sizes, kind.trains, reached)
            for kind, reached in zip(kinds, timeline.reached, strict=True)
        ]
        key, sizes = _ends(actual_kinds)
        ends = (timeline.before, timeline.loss, timeline.between, timeline.after)
        self._library.add(("ends", key), sizes, Piece(ends))
        height = Span.of(timeline.update).height / max(
            1.0, self._updated(timeline.gradients, timeline.outside_gradients)
        )
        outside = np.array(
            [
                *timeline.outside.numbers(),
                *timeline.outside_gradients,
                timeline.head_gradients,
                timeline.inputs,
                height,
            ]
        )
        self._library.add(("outside", _structures(candidate)), _sizes(candidate), Piece((outside,)))

    def _updated(self, blocks: Iterable[Gradients], outside: Gradients) -> float:
        """Bytes of what is updated at once, in which the height of an update is linear: on a GPU all parameters, on the
        CPU one after another.
        """
        if self.setup.target == "cuda":
            return outside.bytes + sum(one.bytes for one in blocks)
        return max(outside.largest, *(one.largest for one in blocks))

    def _composed(self, candidate: Candidate, kinds: Sequence[Kind]) -> StepParts | None:
        key, sizes = _ends(kinds)
        ends = self._library.at(("ends", key), sizes)
        outside = self._library.at(("outside", _structures(candidate)), _sizes(candidate))
        blocks: dict[tuple[Hashable, Sizes], Block] = {}
        for kind in kinds:
            if (kind.key, kind.sizes) not in blocks:
                piece = self._library.at(kind.key, kind.sizes)
                if piece is None:
                    return None
                held, forward, uncast, backward = piece.arrays
                blocks[kind.key, kind.sizes] = Block(
                    Held.of(held[:-2]),
                    Span.of(forward),
                    -float(uncast.sum()),
                    Span.of(backward),
                    Gradients(float(held[-2]), float(held[-1])),
                    kind.trains or kind.reached,
                )
        if ends is None or outside is None:
            return None
        before, loss, between, after = (Span.of(part) for part in ends.arrays)
        *numbers, made, largest, head_gradient, inputs, height = (float(one) for one in outside.arrays[0])
        every = [blocks[kind.key, kind.sizes] for kind in kinds]
        return StepParts(
            outside=Held.of(numbers),
            outside_gradient=made,
            head_gradient=head_gradient,
            blocks=every,
            inputs=inputs,
            before=before,
            loss=loss,
            between=between,
            after=after,
            update=height * self._updated((block.gradients for block in every), Gradients(made, largest)),
            accumulates=self.setup.accumulates,
        )


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
    found = StepParts.of(timeline).prediction()
    if workspace is None:
        return found
    events = first_steps((before or timeline, timeline), emptied=True)
    reserved = simulated(events, workspace).reserved_peak
    return found.model_copy(update={"train_peak_reserved_bytes": reserved})
