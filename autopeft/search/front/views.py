"""What the sampler sees of a space: points to draw, change and recognise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution

from autopeft.domain.candidate import Candidate, Setting
from autopeft.domain.objective import Objective, Unit
from autopeft.domain.ports import Known, KnownObjectives
from autopeft.domain.space import ChoiceDomain, Domain, FloatDomain, Space
from autopeft.search.encoding import Encoded, distribution, encode, enumerate_values
from autopeft.search.front.drawing import change, corner, draw
from autopeft.search.front.features import Encoder, Shape, Trait, describe

Array = NDArray[np.float64]

MEMORY = "train_peak_bytes"
"""What a memory limit is about."""
_SAMPLE = 300
"""Draws that columns and scales are taken from."""
_SMALL = 1500
"""Largest space that is considered whole at every question."""
_CACHED = 30_000
"""Points kept; making one takes some 0.1 ms."""
SPREAD = (500, 60)
"""Points at random and at corners in a pool."""
_RENEWED = 24
"""Random points serve for so many trials: making them takes most of a question's time."""
_LOG_UNITS = (Unit.BYTES, Unit.COUNT, Unit.SECONDS)
_CHANGES = (0.6, 0.3, 0.1)
"""Chances of changing one, two or three parameters."""


@dataclass(frozen=True, eq=False)
class Point:
    """A setting of the parameters with everything that the sampler must know of it."""

    params: Mapping[str, Any]
    """As Optuna sees them; only those that exist."""
    key: Hashable
    """Points of one key train the same."""
    row: Array
    """`[d]`: inputs of the surrogate."""
    known: tuple[float | None, ...]
    """Per objective, its exact value; None where it must be learned."""
    feasible: bool = True
    """False where it is known that it does not fit."""
    memory: float | None = None
    """Known bytes of training, which a memory limit is about."""
    seconds: float | None = None
    """Known seconds of training, up to a factor that all points have."""


class View(Protocol):
    """A space as the sampler sees it."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Of every parameter that may exist."""
        ...

    @property
    def groups(self) -> NDArray[np.int_]:
        """`[d]`: which inputs of the surrogate share a length-scale."""
        ...

    @property
    def logarithmic(self) -> tuple[bool, ...]:
        """Per objective, whether ratios count rather than differences."""
        ...

    def point(self, params: Mapping[str, Any]) -> Point | None:
        """The point of a trial; None where its parameters stand for nothing."""
        ...

    def everything(self) -> Sequence[Point] | None:
        """Every point of a small space, in a fixed order."""
        ...

    def drawn(self, rng: np.random.Generator) -> Point | None:
        """A point at random; None where the draw stands for nothing."""
        ...

    def spread(self, number: int) -> Sequence[Point]:
        """Points at random and at corners of the space, for the trial of this number and for some after it."""
        ...

    def changed(self, point: Point, rng: np.random.Generator, count: int | None = None) -> Point | None:
        """A point that differs in `count` parameters, by default one to three, and in what depends on them."""
        ...

    def exchanged(self, point: Point, name: str, value: Any, rng: np.random.Generator) -> Point | None:
        """The point with another value of one parameter that it has; what that brings into being is drawn."""
        ...


def changed_names(names: Sequence[str], rng: np.random.Generator, count: int | None) -> set[str]:
    """So many of the names, drawn; by default one to three."""
    count = count or 1 + int(rng.choice(len(_CHANGES), p=_CHANGES))
    return {names[int(index)] for index in rng.permutation(len(names))[:count]}


class SpaceView:
    """Implements `View` over a search space bound to a model; inputs are those of the candidates.

    Whatever is exactly known of candidates is an input too, since a parameter count says much about quality.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], known: KnownObjectives | None, seed: int = 0
    ) -> None:
        self._space = space
        self._known = known
        self._seed = seed
        self._spread: tuple[int, list[Point]] | None = None
        self._objectives = tuple(objectives)
        self._distributions = {parameter.name: distribution(parameter.domain) for parameter in space.parameters}
        self._domains = {parameter.name: parameter.domain for parameter in space.parameters}
        self._floats = [one.name for one in space.parameters if isinstance(one.domain, FloatDomain)]
        self._points: dict[tuple[tuple[str, Encoded], ...], Point | None] = {}
        rng = np.random.default_rng(0)  # the same columns for every search of this space
        drawn = [self._settings(self._walk({}, rng, draw)) for _ in range(_SAMPLE)]
        resolved = [(values, candidate) for values in drawn if (candidate := space.resolve(values)) is not None]
        self._shape = Shape.of([candidate for _, candidate in resolved])
        self._encoder = Encoder.of(
            [self._traits(values, candidate, self._known_of(candidate)) for values, candidate in resolved]
        )
        self._all: list[Point] | None = None
        size = space.size()
        self._small = size is not None and size <= _SMALL

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        return self._distributions

    @property
    def groups(self) -> NDArray[np.int_]:
        return self._encoder.groups

    @property
    def logarithmic(self) -> tuple[bool, ...]:
        return tuple(objective.unit in _LOG_UNITS for objective in self._objectives)

    def point(self, params: Mapping[str, Any]) -> Point | None:
        key = tuple(sorted(params.items()))
        if key not in self._points:
            if len(self._points) >= _CACHED:
                self._points.clear()
            self._points[key] = self._point(params)
        return self._points[key]

    def described(self, values: Mapping[str, Setting]) -> Point | None:
        """The point of the parameters as the space itself has them."""
        return self.point(encode(self._space.parameters, values)[0])

    def everything(self) -> Sequence[Point] | None:
        if not self._small:
            return None
        if self._all is None:
            parameters = self._space.parameters
            found = (self.point(encode(parameters, values)[0]) for values in enumerate_values(parameters))
            self._all = [point for point in found if point is not None]
        return self._all

    def drawn(self, rng: np.random.Generator) -> Point | None:
        return self.point(self._walk({}, rng, draw))

    def spread(self, number: int) -> Sequence[Point]:
        block = number // _RENEWED
        if self._spread is None or self._spread[0] != block:
            rng = np.random.default_rng([self._seed, block])
            ways = [draw] * SPREAD[0] + [corner] * SPREAD[1]
            found = (self.point(self._walk({}, rng, way)) for way in ways)
            self._spread = (block, [point for point in found if point is not None])
        return self._spread[1]

    def changed(self, point: Point, rng: np.random.Generator, count: int | None = None) -> Point | None:
        free = [name for name in point.params if not self._distributions[name].single()]
        if not free:
            return None
        wanted = dict(point.params)
        for name in changed_names(free, rng, count):
            wanted[name] = change(self._distributions[name], wanted[name], rng)
        return self.point(self._walk(wanted, rng, draw))

    def exchanged(self, point: Point, name: str, value: Any, rng: np.random.Generator) -> Point | None:
        return self.point(self._walk({**point.params, name: value}, rng, draw))

    def _point(self, params: Mapping[str, Any]) -> Point | None:
        values = self._settings(params)
        candidate = self._space.resolve(values)
        if candidate is None:
            return None
        known = self._known_of(candidate)
        row = self._encoder.row(self._traits(values, candidate, known))
        exact = tuple(known.values.get(objective.name) for objective in self._objectives)
        return Point(
            dict(params), candidate.digest, row, exact, known.feasible, known.values.get(MEMORY), known.seconds
        )

    def _known_of(self, candidate: Candidate) -> Known:
        return (self._known(candidate) if self._known is not None else None) or Known()

    def _traits(self, values: Mapping[str, Setting], candidate: Candidate, known: Known) -> dict[str, Trait]:
        traits = describe(candidate, self._shape)
        # A number that the space turns into another one, as a place in a method's range of learning rates.
        traits |= {f"proposed {name}": float(values[name]) for name in self._floats if name in values}
        return traits | {f"known {name}": float(value) for name, value in known.values.items()}

    def _walk(
        self,
        wanted: Mapping[str, Encoded],
        rng: np.random.Generator,
        otherwise: Callable[[BaseDistribution, np.random.Generator], Any],
    ) -> dict[str, Encoded]:
        """The active parameters: as wanted where that is said."""
        params: dict[str, Encoded] = {}
        values: dict[str, Setting] = {}
        for parameter in self._space.parameters:
            name = parameter.name
            if parameter.active(values):
                params[name] = wanted[name] if name in wanted else otherwise(self._distributions[name], rng)
                values[name] = _decoded(parameter.domain, params[name])
        return params

    def _settings(self, params: Mapping[str, Any]) -> dict[str, Setting]:
        return {name: _decoded(self._domains[name], value) for name, value in params.items()}


def _decoded(domain: Domain, value: Encoded) -> Setting:
    return domain.values[int(value)] if isinstance(domain, ChoiceDomain) else value
