"""Candidates as rows of numbers for the surrogate: one fixed description, and columns scaled to a space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import Role

Array = NDArray[np.float64]
Trait = bool | int | float | str | tuple[float, ...]
"""A number, a name (any text, True or False), or a block of numbers, one per layer or module."""
Traits = Mapping[str, Trait]
"""A candidate by named traits. A trait that does not exist for it (the rank of a prefix) is left out."""

_LOG_SPAN = 8.0
"""A positive number that grows by this factor or more over a space is taken as its logarithm."""
_SAME = 1.0 - 1e-9
"""Squared correlation above which a trait says nothing that an earlier one has not said."""


@dataclass(frozen=True)
class Shape:
    """What candidates of a space can be, which decides how settings are named."""

    depth: int
    """Layers of the model, as far as candidates show them."""
    mixed: bool
    """Whether a candidate may hold several methods: settings are then kept apart by method."""
    parted: bool
    """Whether a candidate may hold one method several times: its settings are then told layer by layer too."""

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> Shape:
        """The shape that these candidates show."""
        layers = [layer for one in candidates for layer in one.layers()]
        methods = [[insertion.method for insertion in one.insertions] for one in candidates]
        return cls(
            depth=max(layers, default=0) + 1,
            mixed=any(len(set(names)) > 1 for names in methods),
            parted=any(len(set(names)) < len(names) for names in methods),
        )


def describe(candidate: Candidate, shape: Shape) -> dict[str, Trait]:
    """The traits of a candidate.

    `method` (in mixes, one trait for each method that is there); every setting, weighted by the layers it is in; the
    layer mask as the share of layers (`layers.count`), their centre of mass from 0 (input) to 1 (`layers.centre`) and
    its bits (`layers.bits`); the roles of the modules as bits; pruning and policy by name, with their settings; the
    learning rate. So a candidate has the same traits in whatever space it is found.
    """
    traits: dict[str, Trait] = {"learning_rate": candidate.learning_rate}
    if shape.mixed:
        for name in {insertion.method for insertion in candidate.insertions}:
            own = [insertion for insertion in candidate.insertions if insertion.method == name]
            traits[f"{name}.present"] = "yes"
            traits |= _settings(own, f"{name}.", shape)
            traits |= _mask(own, f"{name}.layers", shape)
    else:
        traits["method"] = candidate.insertions[0].method if candidate.insertions else "none"
        traits |= _settings(candidate.insertions, "", shape)
    traits |= _mask(candidate.insertions, "layers", shape)
    roles = {role for insertion in candidate.insertions for role in insertion.modules}
    traits["modules"] = tuple(float(role in roles) for role in Role)
    for kind, name, settings in candidate.treatments():
        traits[kind] = name
        traits |= {f"{kind}.{key}": value for key, value in settings.items()}
    traits.setdefault("pruning", "none")
    traits.setdefault("policy", "none")
    return traits


def _settings(insertions: Sequence[Insertion], prefix: str, shape: Shape) -> dict[str, Trait]:
    found: dict[str, Trait] = {}
    for name in sorted({name for insertion in insertions for name in insertion.settings}):
        holders = [insertion for insertion in insertions if name in insertion.settings]
        values = [insertion.settings[name] for insertion in holders]
        if any(isinstance(value, bool | str) for value in values):
            found[prefix + name] = " ".join(str(value) for value in values) if len(values) > 1 else values[0]
            continue
        weights = [len(insertion.layers) for insertion in holders]
        numbers = [float(value) for value in values]
        found[prefix + name] = float(np.average(numbers, weights=weights)) if len(numbers) > 1 else numbers[0]
        if shape.parted:
            profile = [0.0] * shape.depth
            for insertion, number in zip(holders, numbers, strict=True):
                for layer in insertion.layers:
                    if layer < shape.depth:
                        profile[layer] = math.log2(1.0 + abs(number))
            found[f"{prefix}{name} by layer"] = tuple(profile)
    return found


def _mask(insertions: Sequence[Insertion], name: str, shape: Shape) -> dict[str, Trait]:
    layers = sorted({layer for insertion in insertions for layer in insertion.layers})
    bits = [0.0] * shape.depth
    for layer in layers:
        if layer < shape.depth:
            bits[layer] = 1.0
    middle = float(np.mean(layers)) / max(1, shape.depth - 1) if layers else 0.5
    return {f"{name}.count": len(layers) / shape.depth, f"{name}.centre": middle, f"{name}.bits": tuple(bits)}


_Column = Callable[[Trait | None], list[float]]


@dataclass(frozen=True)
class _Numeric:
    low: float
    span: float
    log: bool
    indicator: bool
    """Whether a second column says that the trait exists."""

    def __call__(self, value: Trait | None) -> list[float]:
        there = isinstance(value, int | float) and not isinstance(value, bool)
        place = 0.5
        if there:
            assert isinstance(value, int | float)
            number = math.log(max(value, 1e-300)) if self.log else float(value)
            place = (number - self.low) / self.span
        return [place, float(there)] if self.indicator else [place]


@dataclass(frozen=True)
class _Named:
    names: tuple[str, ...]

    def __call__(self, value: Trait | None) -> list[float]:
        # Scaled so that two different names are one apart.
        text = None if value is None else _name(value)
        return [math.sqrt(0.5) * (name == text) for name in self.names]


@dataclass(frozen=True)
class _Block:
    scale: float
    width: int

    def __call__(self, value: Trait | None) -> list[float]:
        # Scaled so that two blocks that differ everywhere are one apart.
        if not isinstance(value, tuple):
            return [0.0] * self.width
        return [self.scale * number for number in (*value, *[0.0] * self.width)[: self.width]]


@dataclass(frozen=True)
class Encoder:
    """From traits to a row of inputs; columns, scales and groups are those of a sample of the space."""

    columns: tuple[tuple[str, _Column], ...]
    groups: NDArray[np.int_]
    """`[d]`: inputs of one trait share a length-scale."""

    @classmethod
    def of(cls, sample: Sequence[Traits]) -> Encoder:
        """Columns for what differs within the sample; what repeats an earlier trait is left out."""
        columns: list[tuple[str, _Column]] = []
        groups: list[int] = []
        kept: list[Array] = []
        for name in sorted({name for traits in sample for name in traits}, key=lambda one: (one.endswith("bits"), one)):
            values = [traits.get(name) for traits in sample]
            column = _column(values)
            if column is None:
                continue
            block = np.array([column(value) for value in values])
            block = block - block.mean(axis=0)
            if _repeats(block, kept) or (name.endswith(".bits") and _follows(values, sample, name)):
                continue
            columns.append((name, column))
            groups += [len(kept)] * block.shape[1]
            kept.append(block)
        return cls(tuple(columns), np.array(groups, dtype=int))

    def row(self, traits: Traits) -> Array:
        """`[d]`."""
        return np.array([number for name, column in self.columns for number in column(traits.get(name))])


def _column(values: Sequence[Trait | None]) -> _Column | None:
    there = [value for value in values if value is not None]
    blocks = [value for value in there if isinstance(value, tuple)]
    if blocks:
        largest = max((abs(number) for block in blocks for number in block), default=0.0)
        if largest == 0 or len(set(blocks)) == 1 == len({value is None for value in values}):
            return None
        width = max(len(block) for block in blocks)
        return _Block(1.0 / (largest * math.sqrt(width)), width)
    names = sorted({_name(value) for value in there})
    if any(isinstance(value, bool | str) for value in there):
        missing = len(there) < len(values)
        return _Named(tuple(names)) if len(names) > 1 or missing else None
    numbers = [float(value) for value in there if isinstance(value, int | float)]
    low, high = min(numbers), max(numbers)
    missing = len(there) < len(values)
    if low == high:
        return _Named(tuple(names)) if missing else None
    log = low > 0 and high / low >= _LOG_SPAN
    if log:
        low, high = math.log(low), math.log(high)
    return _Numeric(low, high - low, log, missing)


def _name(value: Trait) -> str:
    """Text of a value that keeps 1, 1.0, True and "1" apart."""
    return f"{type(value).__name__} {value}"


def _repeats(block: Array, kept: Sequence[Array]) -> bool:
    """Whether a block is a linear image of an earlier one of the same width, as a centre of mass is of a count."""
    for other in kept:
        if other.shape != block.shape:
            continue
        own, theirs = float(np.sum(block**2)), float(np.sum(other**2))
        if float(np.sum(block * other)) ** 2 >= _SAME * own * theirs:
            return True
    return False


def _follows(values: Sequence[Trait | None], sample: Sequence[Traits], name: str) -> bool:
    """Whether bits are determined by count and centre, as where layers are counted from the top."""
    stem = name.removesuffix("bits")
    summary = {(traits.get(f"{stem}count"), traits.get(f"{stem}centre")) for traits in sample}
    both = {(traits.get(f"{stem}count"), traits.get(f"{stem}centre"), traits.get(name)) for traits in sample}
    return len(both) == len(summary) < len(values) / 4
