"""The front of a search while it grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autopeft.domain.objective import Objective
from autopeft.domain.repetition import believed
from autopeft.domain.results import Front, ScoredTrial
from autopeft.domain.trial import Trial, TrialStatus


class GrowingFront:
    """The front of all trials that ended so far, of posterior means where any candidate was repeated.

    What is dominated stays so, unless repetitions may move it: then every complete trial is kept until the end.
    """

    def __init__(self, objectives: Sequence[Objective], repeats: bool = False) -> None:
        """`repeats`: whether candidates may be trained again with another seed."""
        self._objectives = tuple(objectives)
        self._repeats = repeats
        self._complete: dict[int, ScoredTrial] = {}
        self.front = Front(self._objectives, ())

    def begin(self, scored: Sequence[ScoredTrial]) -> None:
        """Take in what is stored, in order of number."""
        self._complete = {one.trial.number: one for one in scored if one.values is not None}
        self.front = self._front()

    def add(self, scored: ScoredTrial) -> list[Trial]:
        """Take in a trial that ended; returns the trials, of it and of the last front, that nobody needs any more."""
        before = self.front
        if scored.values is not None:
            self._complete[scored.trial.number] = scored
            self.front = self._front() if self._repeats else Front.of(self._objectives, [*before.members, scored])
        left = [one.trial for one in before.members if one.trial.number not in self.front.numbers]
        return list(self.spared(left if scored.trial.number in self.front.numbers else [*left, scored.trial]))

    def spared(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of them that cannot come to the front any more."""
        return [one for one in trials if not (self._repeats and one.status is TrialStatus.COMPLETE)]

    @property
    def left(self) -> list[Trial]:
        """All complete trials that are not on the front."""
        return [one.trial for number, one in self._complete.items() if number not in self.front.numbers]

    def _front(self) -> Front:
        trials = [one for _, one in sorted(self._complete.items())]
        return Front.of(self._objectives, believed(self._objectives, trials).points if self._repeats else trials)
