"""Points that are tried before the sampler is asked: a person's own, those of earlier fronts, first guesses."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.domain.ports import Proposal
from autopeft.domain.results import ScoredTrial
from autopeft.domain.start import SAMPLER, START_WITH, Start
from autopeft.search.asking import HistorySampler


class StartedSampler:
    """Implements `autopeft.domain.ports.Sampler`: the points of a start in their order, then those of a sampler.

    Which point is next is found in the history: the first whose candidate was never proposed. A trial that was refused
    for its memory does not count among those that may be trained, so that the next point takes its place.
    """

    def __init__(self, sampler: HistorySampler, start: Start) -> None:
        self._sampler = sampler
        self._start = start
        self._counted: set[int] = set()
        """Numbers of trials of points that nobody asked for by name."""

    def ask(self, number: int) -> Proposal | None:
        """The next point that is not taken, else what the sampler proposes.

        Raises:
            ValueError: where the number was told already.
        """
        self._counted.discard(number)
        room = len(self._counted) < self._start.most
        found = self._sampler.place(number, [one for one in self._start.points if one.asked_for or room])
        if found is None:
            return self._sampler.ask(number)
        point, proposal = found
        if not point.asked_for:
            self._counted.add(number)
        return proposal

    def tell(self, scored: ScoredTrial) -> None:
        """Learn where a trial stands now."""
        trial = scored.trial
        if trial.origin in (SAMPLER, START_WITH) or trial.refused:
            self._counted.discard(trial.number)
        else:
            self._counted.add(trial.number)
        self._sampler.tell(scored)

    def replay(self, history: Sequence[ScoredTrial]) -> None:
        """Learn a stored history."""
        for scored in history:
            self.tell(scored)
