"""The configurations of a table as the whole space of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.candidate import Candidate, Setting
from autopeft.domain.objective import Objective
from autopeft.domain.ports import KnownObjectives
from autopeft.domain.recording import RecordedTable
from autopeft.domain.space import ChoiceDomain, Domain, Parameter
from autopeft.search.encoding import encode
from autopeft.search.front.views import Point, SpaceView
from autopeft.search.replay.truth import Truth

Array = NDArray[np.float64]


class TableSpace:
    """Implements `autopeft.domain.space.Space`: parameters are the recorded space's, candidates the table's.

    What any sampler proposes stands for the nearest configuration that is still free: the squares of the differences
    are added, each parameter over its scale from 0 to 1; two different values of a choice without order are 1 apart,
    and so are a value and none. So samplers are asked as they are in a search of the whole space. One that looks at a
    given set of points, as `front` does of a small space, is given the table's own (`TableView`).
    """

    name = "table"

    def __init__(self, table: RecordedTable) -> None:
        self.parameters: Sequence[Parameter] = table.facts.parameters
        self._configs = list(table.trainings)
        self._settings = [trainings[0].parameters for trainings in table.trainings.values()]
        self._candidates = [trainings[0].candidate for trainings in table.trainings.values()]
        self._rows = np.array([self._row(settings) for settings in self._settings])
        self._unordered = np.array(
            [isinstance(one.domain, ChoiceDomain) and not one.domain.ordered for one in self.parameters]
        )
        self._by_digest = {one.digest: index for index, one in enumerate(self._candidates)}
        self._by_settings = {_key(settings): index for index, settings in enumerate(self._settings)}
        self.free = np.ones(len(self._configs), dtype=bool)

    def size(self) -> int | None:
        return None

    def resolve(self, values: Mapping[str, Setting]) -> Candidate | None:
        """The candidate with these very parameters, or else the nearest free one; None where none is free."""
        own = self._by_settings.get(_key(values))
        if own is not None:
            return self._candidates[own]
        if not self.free.any():
            return None
        return self._candidates[int(np.argmin(np.where(self.free, self._away(values), np.inf)))]

    def take(self, candidate: Candidate) -> int:
        """The configuration of a candidate, which is free no more."""
        index = self._by_digest[candidate.digest]
        self.free[index] = False
        return self._configs[index]

    def settings(self, config: int) -> dict[str, Setting]:
        """The parameters of a configuration."""
        return dict(self._settings[self._configs.index(config)])

    @property
    def all_settings(self) -> Sequence[Mapping[str, Setting]]:
        """Of every configuration, in order."""
        return self._settings

    def _away(self, values: Mapping[str, Setting]) -> Array:
        """`[configurations]`: squared distances."""
        own = self._row(values)
        both = np.where(self._unordered, (self._rows != own).astype(float), (self._rows - own) ** 2)
        missing, absent = np.isnan(self._rows), np.isnan(own)
        return np.where(missing | absent, (missing != absent).astype(float), both).sum(axis=1)

    def _row(self, values: Mapping[str, Setting]) -> Array:
        """`[parameters]`: the place of each from 0 to 1, the index of a choice without order, NaN for none."""
        return np.array([_place(one.domain, values.get(one.name)) for one in self.parameters])


def _place(domain: Domain, value: Setting | None) -> float:
    if value is None:
        return math.nan
    if isinstance(domain, ChoiceDomain):
        index = domain.values.index(value)
        return index / max(1, len(domain.values) - 1) if domain.ordered else float(index)
    low, high, at = float(domain.low), float(domain.high), float(value)
    if domain.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low) if high > low else 0.0


def _key(values: Mapping[str, Setting]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in values.items()))


def view_of(truth: Truth) -> SpaceView:
    """The space of a table as a rule that stops trials sees it."""
    return SpaceView(TableSpace(truth.table), truth.objectives, truth.known)


class TableView(SpaceView):
    """The space of a search whose every point is a configuration of the table."""

    def __init__(
        self, space: TableSpace, objectives: Sequence[Objective], known: KnownObjectives | None, seed: int
    ) -> None:
        super().__init__(space, objectives, known, seed)
        found = (self.point(encode(space.parameters, settings)[0]) for settings in space.all_settings)
        self._table = [point for point in found if point is not None]

    def everything(self) -> Sequence[Point] | None:
        return self._table


class FreeView(SpaceView):
    """The space of a search whose points stand for what the table has left, which changes from trial to trial."""

    def __init__(
        self, space: TableSpace, objectives: Sequence[Objective], known: KnownObjectives | None, seed: int
    ) -> None:
        self._table_space = space
        self._left = -1
        super().__init__(space, objectives, known, seed)

    def point(self, params: Mapping[str, Any]) -> Point | None:
        left = int(self._table_space.free.sum())
        if left != self._left:
            self._points.clear()
            self._left = left
        return super().point(params)
