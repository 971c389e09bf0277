"""Which blocks of a candidate are alike, as far as memory goes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.domain.candidate import Candidate, Insertion, Setting
from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.evaluate.memory.composition import Sizes
from autopeft.evaluate.methods import METHODS

ATTENTION = frozenset((Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.ATTENTION_OUTPUT))

ALIKE = {"rslora": "lora", "pissa": "lora", "olora": "lora"}
"""Methods whose step is that of another one: they differ in the values that they start from, or in a factor."""


@dataclass(frozen=True)
class Pattern:
    """What takes part in the backward pass of one step."""

    open: frozenset[int] | None = None
    """The layers that train; None for all that hold something trainable."""
    cut: frozenset[tuple[int, Role]] = frozenset()
    """Layers and modules whose output is detached."""


EVERYTHING = Pattern()


@dataclass(frozen=True)
class Kind:
    """A block of a candidate; blocks of one kind and equal sizes need the same memory."""

    structure: Hashable
    sizes: Sizes
    trains: bool
    """Whether it holds something that trains in the step."""
    reached: bool
    """Whether something below it trains, so that a gradient passes through it."""

    @property
    def key(self) -> Hashable:
        """What traces are kept by, sizes aside."""
        return (self.structure, self.trains, self.reached)


def shape_of(insertion: Insertion) -> tuple[Hashable, Sizes]:
    """What of an insertion decides its memory, layers aside: a structure, and the sizes in which memory is affine.

    Whole numbers are sizes; of fractions only whether they are 0 matters (dropout), except of the method's own knob.
    """
    fixed: list[Any] = [ALIKE.get(insertion.method, insertion.method), insertion.modules]
    sizes: list[float] = []
    knob = METHODS[insertion.method].facts.knob
    for name, value in sorted(insertion.settings.items()):
        if isinstance(value, int) and not isinstance(value, bool):
            sizes.append(float(value))
            fixed.append(name)
        else:
            fixed.append((name, _told_apart(name == knob, value)))
    return tuple(fixed), tuple(sizes)


def _told_apart(whole: bool, value: Setting) -> Setting:
    return value if whole or not isinstance(value, float) else bool(value)


def signatures(layout: ModelLayout) -> tuple[Hashable, ...]:
    """Per layer what its own matrices and norms look like; equal layers are equal here."""
    return tuple(_signature(layer) for layer in layout.layers)


def _signature(layer: LayerLayout) -> Hashable:
    modules = tuple((one.role, one.in_features, one.out_features, one.bias, one.transposed) for one in layer.modules)
    return (modules, tuple(norm.parameters for norm in layer.norms), layer.parameters, layer.biases)


def kinds_of(
    candidate: Candidate, layout: ModelLayout, of_layers: Sequence[Hashable], pattern: Pattern, below: bool
) -> list[Kind]:
    """The kind of every layer; `below` says whether a gradient reaches the first one's input."""
    shapes = [shape_of(insertion) for insertion in candidate.insertions]
    everywhere = [not METHODS[insertion.method].facts.takes_layers for insertion in candidate.insertions]
    found: list[Kind] = []
    reached = below
    for layer in layout.layers:
        index = layer.index
        here = [place for place, one in enumerate(candidate.insertions) if everywhere[place] or index in one.layers]
        cut = frozenset(role for at, role in pattern.cut if at == index)
        shut = pattern.open is not None and index not in pattern.open
        trains = bool(here) and trains_in(candidate, index, pattern)
        # What goes into the first block, and what comes out of the last, is given up elsewhere.
        place_in_model = (index == 0, index == len(layout.layers) - 1)
        inside = tuple(shapes[place][0] for place in here)
        structure = (of_layers[index], inside, cut, shut and bool(here), place_in_model)
        sizes = tuple(size for place in here for size in shapes[place][1])
        found.append(Kind(structure, sizes, trains, reached))
        reached = reached or trains
    return found


def trains_in(candidate: Candidate, layer: int, pattern: Pattern) -> bool:
    """Whether something that the candidate has in the layer gets a gradient."""
    if pattern.open is not None and layer not in pattern.open:
        return False
    cut = frozenset(role for at, role in pattern.cut if at == layer)
    return any(
        not _cut_off(one, cut)
        for one in candidate.insertions
        if layer in one.layers or not METHODS[one.method].facts.takes_layers
    )


def _cut_off(insertion: Insertion, cut: frozenset[Role]) -> bool:
    """Whether all that an insertion has in a layer lies in branches whose output is detached."""
    return bool(cut) and bool(insertion.modules) and branches_of(insertion) <= cut


def branches_of(insertion: Insertion) -> frozenset[Role]:
    """The last modules of the residual branches in which it stands; both where it names no modules."""
    if not insertion.modules:
        return frozenset((Role.ATTENTION_OUTPUT, Role.FFN_OUT))
    return frozenset(Role.ATTENTION_OUTPUT if Role(role) in ATTENTION else Role.FFN_OUT for role in insertion.modules)


def first_of_each(kinds: Sequence[Kind]) -> list[int]:
    """The first layer of each kind and size, ascending: a model of these alone shows them all."""
    seen: dict[tuple[Hashable, Sizes], int] = {}
    for index, kind in enumerate(kinds):
        seen.setdefault((kind.key, kind.sizes), index)
    return sorted(seen.values())


def narrowed(candidate: Candidate, pattern: Pattern, layers: Sequence[int]) -> tuple[Candidate, Pattern]:
    """The candidate and the pattern on a model of these layers alone, numbered anew."""
    place: Mapping[int, int] = {index: at for at, index in enumerate(layers)}
    insertions = []
    for insertion in candidate.insertions:
        kept = tuple(place[index] for index in insertion.layers if index in place)
        if kept or not METHODS[insertion.method].facts.takes_layers:
            insertions.append(insertion.model_copy(update={"layers": kept}))
    opened = None if pattern.open is None else frozenset(place[index] for index in pattern.open if index in place)
    cut = frozenset((place[index], role) for index, role in pattern.cut if index in place)
    changed = {"insertions": tuple(insertions), "pruning": None, "policy": None}
    return candidate.model_copy(update=changed), Pattern(opened, cut)
