"""One search replayed on a table: workers, a simulated clock, and a referee."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, replace

from autopeft.domain.ports import KnownObjectives, Proposal, Sampler
from autopeft.domain.recording import RecordedTraining
from autopeft.domain.replayed import Moment, Replay
from autopeft.domain.results import ScoredTrial, score
from autopeft.domain.start import Start
from autopeft.domain.stopping import Standing, StoppingRule, most_wanted
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.search.front.views import View
from autopeft.search.replay.table_space import FreeView, TableSpace, TableView
from autopeft.search.replay.truth import Truth
from autopeft.search.samplers import PAPER, make_sampler

BLIND = "-blind"
"""Ends the name of a sampler that is not told what is known before training."""
PUBLISHED = "-as-published"
"""Ends the name of a paper's sampler that trains other candidates than the ones it learns from, as the released code
does by mistake. It is for benchmarks and in no search."""


def sampler_of(name: str) -> str:
    """The sampler of the list that a name stands for, which may not be there."""
    published = name.removesuffix(PUBLISHED)
    return published if published in PAPER else name.removesuffix(BLIND)


@dataclass
class _Running:
    """A trial on a worker."""

    number: int
    config: int
    proposal: Proposal
    training: RecordedTraining
    began_s: float
    losses: tuple[float, ...] = ()
    """Of all rungs that its training reaches."""
    reached: int = 0
    complete: bool = False
    stopped: bool = False
    samples: int = 0
    """Training rows that were counted so far."""

    def standing(self, memory: float) -> Standing:
        trained = tuple(rung.train_loss for rung in self.training.rungs[: self.reached])
        seen, own = self.losses[: self.reached], self.training.parameters
        return Standing(self.number, memory, seen, self.complete, trained, self.stopped, parameters=own)


@dataclass(order=True)
class _Event:
    """A trial reaches a rung, or ends at or after it; what comes at one time comes in the order of these fields."""

    at_s: float
    number: int
    rung: int
    end: bool = False


def replay(
    truth: Truth,
    sampler: str,
    seed: int,
    *,
    workers: int = 1,
    rule: StoppingRule | None = None,
    trials: int | None = None,
    until: float | None = None,
    start: Start | None = None,
) -> Replay:
    """Search a table with a sampler, as if every training took the time that was recorded.

    A free worker asks the sampler, trains what it proposes, and reports at each rung; where the rule says so, the trial
    ends there. A stopped trial that the rule wants after all trains on from its rung before anything new is proposed.
    Proposing takes no simulated time. Everything but `Replay.sampler_s` is a function of the arguments.

    Args:
        truth: The table.
        sampler: Its name; with the ending `-blind`, it has to learn what is known before a training; `autopeft` and
            `autopeft-map` with the ending `-as-published` learn from other candidates than they train.
        seed: Of the sampler, and of which recorded training of each configuration it is shown.
        workers: Trials at once.
        rule: Stops trials early; None trains all to the end.
        trials: Ends the search; None goes on until the table has no more.
        until: Ends the search at this share of the reference hypervolume.
        start: What the search begins with; points of the table.
    """
    return _Search(truth, sampler, seed, rule, start).run(workers, trials or len(truth.configs), until)


class _Search:
    def __init__(
        self, truth: Truth, name: str, seed: int, rule: StoppingRule | None, start: Start | None = None
    ) -> None:
        self._truth = truth
        self._seed = seed
        self._rule = rule
        self._space = TableSpace(truth.table)
        known = None if name.endswith(BLIND) else truth.known
        effort = None
        if (base := sampler_of(name)) in PAPER:
            effort = replace(PAPER[base], as_published=name.endswith(PUBLISHED))
        self._sampler: Sampler = make_sampler(
            base,
            self._space,
            truth.objectives,
            seed,
            known=known,
            view=self._view(base, known),
            effort=effort,
            start=start,
        )
        self._trials: dict[int, _Running] = {}
        self._events: list[_Event] = []
        self._sampler_s = 0.0
        self._samples = 0
        self._ended: set[int] = set()
        self._complete: set[int] = set()
        self._share = 0.0
        self._moments: list[Moment] = []

    def run(self, workers: int, trials: int, until: float | None) -> Replay:
        for _ in range(workers):
            self._start(0.0, trials)
        while self._events and not (until is not None and self._share >= until):
            event = heapq.heappop(self._events)
            running = self._trials[event.number]
            if event.end or self._stops(running, event.rung):
                self._end(running, event)
                self._start(event.at_s, trials)
        return Replay(self._seed, tuple(self._moments), self._stopped, len(self._trials), self._sampler_s)

    @property
    def _stopped(self) -> int:
        return sum(one.stopped for one in self._trials.values())

    def _view(self, name: str, known: KnownObjectives | None) -> View | None:
        """The space as some samplers see it."""
        if name in PAPER:
            return FreeView(self._space, self._truth.objectives, None, self._seed)
        if name in ("front", "evolution"):
            return TableView(self._space, self._truth.objectives, known, self._seed)
        return None

    def _start(self, now_s: float, trials: int) -> None:
        if self._take_up(now_s):
            return
        number = len(self._trials)
        if number >= trials or not self._space.free.any():
            return
        began = time.perf_counter()
        proposal = self._sampler.ask(number)
        self._sampler_s += time.perf_counter() - began
        if proposal is None:
            return
        config = self._space.take(proposal.candidate)
        training = self._truth.shown(config, self._seed)
        running = _Running(number, config, proposal, training, now_s, self._truth.losses(training))
        self._trials[number] = running
        # What runs is the table's configuration, not the proposal that it stands for.
        self._tell(running, TrialStatus.RUNNING)
        self._schedule(running, now_s)

    def _take_up(self, now_s: float) -> bool:
        """Let the most wanted of the stopped trials train on; whether there was one."""
        if self._rule is None:
            return False
        standings = self._standings()
        number = most_wanted(self._rule, [one for one in standings if one.losses])
        if number is None:
            return False
        running = self._trials[number]
        running.stopped = False
        self._tell(running, TrialStatus.RUNNING)
        self._schedule(running, now_s - self._truth.seconds(running.config, running.reached - 1))
        return True

    def _schedule(self, running: _Running, began_s: float) -> None:
        """The rungs that are still to come, and the end, of a training that began (or would have begun) then."""
        reached = len(running.losses)
        for rung in range(running.reached, min(reached, len(self._truth.table.facts.rungs) - 1)):
            at_s = began_s + self._truth.seconds(running.config, rung)
            heapq.heappush(self._events, _Event(at_s, running.number, rung))
        at_s = began_s + self._truth.seconds(running.config, None)
        heapq.heappush(self._events, _Event(at_s, running.number, reached, end=True))

    def _standings(self) -> list[Standing]:
        return [
            one.standing(peak)
            for one in self._trials.values()
            if one.reached and (peak := one.training.train_peak_bytes) is not None
        ]

    def _stops(self, running: _Running, rung: int) -> bool:
        running.reached = rung + 1
        memory = running.training.train_peak_bytes
        if self._rule is None or memory is None:
            return False
        others = [one for one in self._standings() if one.number != running.number]
        return not self._rule.goes_on(running.standing(memory), others)

    def _end(self, running: _Running, event: _Event) -> None:
        if not event.end:
            self._events = [one for one in self._events if one.number != running.number]
            heapq.heapify(self._events)
            status = TrialStatus.STOPPED_EARLY
            running.stopped = True
        else:
            status = running.training.status
            running.reached = len(running.losses)
            running.complete = status is TrialStatus.COMPLETE
        self._ended.add(running.number)
        samples = self._truth.samples(running.training, None if event.end else event.rung)
        self._samples, running.samples = self._samples + samples - running.samples, samples
        self._tell(running, status)
        if running.complete:
            self._complete.add(running.config)
            self._share = self._truth.share(self._complete)
        self._moments.append(Moment(event.at_s, len(self._ended), self._samples, self._share))

    def _tell(self, running: _Running, status: TrialStatus) -> None:
        measured = self._truth.measurements(running.training, running.reached) if status.ended else None
        trial = Trial(
            number=running.number,
            candidate=running.training.candidate,
            parameters=self._space.settings(running.config),
            seed=running.training.seed,
            status=status,
            attempt=1,
            measurements=measured,
            sampler_state=running.proposal.sampler_state,
        )
        scored: ScoredTrial = score(trial, self._truth.objectives)
        began = time.perf_counter()
        self._sampler.tell(scored)
        self._sampler_s += time.perf_counter() - began
