"""The front of a search while it grows."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.domain.objective import Objective
from autopeft.domain.results import Front, ScoredTrial
from autopeft.domain.trial import Trial


class GrowingFront:
    """The front of all trials that ended so far."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = tuple(objectives)
        self.front = Front(self._objectives, ())

    def begin(self, scored: Sequence[ScoredTrial]) -> None:
        """Take in what is stored."""
        self.front = Front.of(self._objectives, scored)

    def add(self, scored: ScoredTrial) -> list[Trial]:
        """Take in a trial that ended; returns the trials that are not on the front, of it and of the last front."""
        before = self.front
        if scored.values is not None:
            self.front = Front.of(self._objectives, [*before.members, scored])
        left = [one.trial for one in before.members if one.trial.number not in self.front.numbers]
        return left if scored.trial.number in self.front.numbers else [*left, scored.trial]
