"""A plain Optuna study as the sampler sees it: the space is what the trials so far showed of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from autopeft.search.front.drawing import change, corner, draw
from autopeft.search.front.features import Encoder, Trait
from autopeft.search.front.views import SPREAD, Point, changed_names

KnownByParams = Mapping[int, Callable[[Mapping[str, Any]], float]]
"""By index, objectives that are functions of the parameters. One may raise `KeyError` where a parameter is missing."""

_SAMPLE = 300
_STRAY = 0.05
"""Share of draws in which a choice may take a value with which it was not yet seen."""


class StudyView:
    """Implements `View` over the trials of a study.

    A define-by-run study does not say which parameters exist when. Trials with the same parameters form a branch; a
    choice that was seen with different values in different branches keeps to those of its branch (it may be what makes
    the branch), everything else ranges freely. Parameters that a proposal lacks after all are drawn by Optuna.
    """

    def __init__(self, trials: Sequence[FrozenTrial], objectives: int, known: KnownByParams, seed: int) -> None:
        """`trials`: at least one with parameters; `objectives`: how many the study has."""
        self._known = known
        self._seed = seed
        self._objectives = objectives
        self._distributions: dict[str, BaseDistribution] = {}
        seen: dict[tuple[str, ...], dict[str, list[Any]]] = {}
        for trial in trials:
            self._distributions |= trial.distributions
            branch = seen.setdefault(tuple(sorted(trial.params)), {name: [] for name in trial.params})
            for name, value in trial.params.items():
                if value not in branch[name]:
                    branch[name].append(value)
        self._branches = [
            {name: self._allowed(name, values[name], list(seen.values())) for name in names}
            for names, values in sorted(seen.items())
        ]
        rng = np.random.default_rng(0)
        drawn = [self._params(draw, rng) for _ in range(_SAMPLE)]
        self._encoder = Encoder.of([_traits(params) for params in drawn])
        exact = [[value for params in drawn if (value := self._exact(index, params)) is not None] for index in known]
        positive = {index for index, values in zip(known, exact, strict=True) if values and min(values) > 0}
        self._logarithmic = tuple(index in positive for index in range(objectives))

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        return self._distributions

    @property
    def groups(self) -> NDArray[np.int_]:
        return self._encoder.groups

    @property
    def logarithmic(self) -> tuple[bool, ...]:
        """Known objectives that are positive, as bytes, parameters and seconds are."""
        return self._logarithmic

    def point(self, params: Mapping[str, Any]) -> Point | None:
        row = self._encoder.row(_traits(params))
        known = tuple(self._exact(index, params) for index in range(self._objectives))
        return Point(dict(params), tuple(sorted(params.items(), key=lambda one: one[0])), row, known)

    def everything(self) -> Sequence[Point] | None:
        return None

    def drawn(self, rng: np.random.Generator) -> Point | None:
        return self.point(self._params(draw, rng))

    def spread(self, number: int) -> Sequence[Point]:
        rng = np.random.default_rng([self._seed, number])
        found = (self.point(self._params(way, rng)) for way in [draw] * SPREAD[0] + [corner] * SPREAD[1])
        return [point for point in found if point is not None]

    def changed(self, point: Point, rng: np.random.Generator, count: int | None = None) -> Point | None:
        own = next((branch for branch in self._branches if set(branch) == set(point.params)), None)
        free = [name for name, one in (own or {}).items() if not one.single()]
        if own is None or not free:
            return None
        wanted = {name: change(own[name], point.params[name], rng) for name in changed_names(free, rng, count)}
        return self.point({**point.params, **wanted})

    def exchanged(self, point: Point, name: str, value: Any, rng: np.random.Generator) -> Point | None:
        own = [branch for branch in self._branches if set(branch) == set(point.params)]
        # The branch that the point is in, where it takes the value; else the first that does.
        branch = next((one for one in [*own, *self._branches] if name in one and _takes(one[name], value)), None)
        if branch is None:
            return None
        kept = {**point.params, name: value}
        return self.point(
            {
                key: kept[key] if key in kept and _takes(one, kept[key]) else draw(one, rng)
                for key, one in branch.items()
            }
        )

    def _params(
        self, way: Callable[[BaseDistribution, np.random.Generator], Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        branch = self._branches[int(rng.integers(len(self._branches)))]
        stray = rng.random() < _STRAY
        return {name: way(self._distributions[name] if stray else one, rng) for name, one in branch.items()}

    def _allowed(self, name: str, own: Sequence[Any], branches: Sequence[Mapping[str, Sequence[Any]]]) -> Any:
        whole = self._distributions[name]
        if not isinstance(whole, CategoricalDistribution):
            return whole
        apart = any(set(own) != set(other[name]) for other in branches if name in other)
        return CategoricalDistribution([choice for choice in whole.choices if choice in own]) if apart else whole

    def _exact(self, index: int, params: Mapping[str, Any]) -> float | None:
        if index not in self._known:
            return None
        try:
            return float(self._known[index](params))
        except KeyError:
            return None


def _takes(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:  # a choice that it has not
        return False


def _traits(params: Mapping[str, Any]) -> dict[str, Trait]:
    return {name: "nothing" if value is None else value for name, value in params.items()}
