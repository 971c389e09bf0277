"""Early stopping in a search: the rungs of all trials, put before the rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from autopeft.domain.candidate import Setting
from autopeft.domain.measurements import Measurements, Rung
from autopeft.domain.objective import Objective
from autopeft.domain.results import quality_column
from autopeft.domain.stopping import Standing, StoppingRule, most_wanted
from autopeft.domain.trial import Trial, TrialStatus


class EarlyStopping:
    """Keeps the standings of trials and asks the rule; a function of the trials so far.

    Losses are of the first objective of quality, memory is the measured training peak at the rung. A trial of which
    either is not known yet goes on, and so does one that was taken up from a checkpoint behind a rung of which nothing
    is known. Which stopped trial is taken up again is decided here too: the one of which the rule says that it is
    wanted after all, as long as its checkpoint is kept.
    """

    def __init__(self, objectives: Sequence[Objective], shares: Sequence[float], rule: StoppingRule) -> None:
        """`shares`: the rungs, as shares of the planned steps."""
        self._shares = tuple(shares)
        column = quality_column(objectives)
        self._objective = None if column is None else objectives[column]
        self._rule = rule
        self._standings: dict[int, Standing] = {}
        self._rungs: dict[int, list[Rung]] = {}
        self._parameters: dict[int, Mapping[str, Setting]] = {}

    def learn(self, trial: Trial) -> None:
        """Take in how a trial stands now, also when it starts; one that will be started again has no standing."""
        self._parameters[trial.number] = trial.parameters
        self._rungs.pop(trial.number, None)
        self._standings.pop(trial.number, None)
        if trial.measurements is None:
            return
        if trial.status in (TrialStatus.COMPLETE, TrialStatus.STOPPED_EARLY):
            self._stand(
                trial.number,
                trial.measurements.rungs,
                complete=trial.status is TrialStatus.COMPLETE,
                stopped=trial.status is TrialStatus.STOPPED_EARLY,
            )
        elif not trial.status.ended:
            # It was stopped once and trains on: what it reported then is not reported again.
            self._rungs[trial.number] = list(trial.measurements.rungs)
            self._stand(trial.number, trial.measurements.rungs, complete=False)

    @property
    def promotes(self) -> bool:
        """Whether a trial may be wanted again although one of the front was better at its rung."""
        return self._rule.promotes

    def wanted(self, kept: Collection[int]) -> int | None:
        """The stopped trial to take up again, of those whose checkpoint is kept; None where none is wanted."""
        standings = self._standings.values()
        return most_wanted(self._rule, [one for one in standings if not one.stopped or one.number in kept])

    def least_wanted(self, kept: Collection[int], most: int) -> list[int]:
        """Of the stopped trials whose checkpoint is kept, those furthest from being wanted, beyond so many."""
        if len(kept) <= most:
            return []
        behind = self._rule.behind(list(self._standings.values()))
        # The highest rung last to go, since most training went into it.
        rungs = {number: len(self._standings[number].losses) if number in self._standings else 0 for number in kept}
        return sorted(kept, key=lambda number: (-rungs[number], behind.get(number, math.inf), number))[most:]

    def replay(self, trials: Sequence[Trial]) -> None:
        """Take in what is stored."""
        for trial in trials:
            self.learn(trial)

    def goes_on(self, number: int, rung: Rung) -> bool:
        """Whether a running trial trains on past the rung that it has just reached."""
        rungs = self._rungs.setdefault(number, [])
        if rungs and rung.step <= rungs[-1].step:
            rungs.clear()  # a new attempt
        rungs.append(rung)
        if len(rungs) < sum(max(1, round(share * rung.planned_steps)) <= rung.step for share in self._shares):
            return True
        own = self._stand(number, rungs, complete=False)
        if own is None or rung.step >= rung.planned_steps:
            return True
        return self._rule.goes_on(own, [one for one in self._standings.values() if one.number != number])

    def stopped(self, number: int) -> Measurements:
        """What is known of a running trial from its rungs alone, where its worker was not asked for more."""
        rungs = self._rungs[number]
        last = rungs[-1]
        return Measurements(
            quality=last.quality,
            rungs=tuple(rungs),
            steps=last.step,
            planned_steps=last.planned_steps,
            train_s=last.train_s,
            evaluate_s=last.evaluate_s,
            train_peak=last.train_peak,
        )

    def _stand(self, number: int, rungs: Sequence[Rung], complete: bool, stopped: bool = False) -> Standing | None:
        peak = rungs[-1].train_peak if rungs else None
        losses = tuple(self._loss(rung.quality) for rung in rungs)
        if peak is None or not all(math.isfinite(loss) for loss in losses):
            return None
        trained = tuple(rung.train_loss for rung in rungs if math.isfinite(rung.train_loss))
        trained = trained if len(trained) == len(rungs) else ()
        self._standings[number] = Standing(
            number,
            float(peak.live_bytes),
            losses,
            complete,
            trained,
            stopped,
            parameters=self._parameters.get(number, {}),
        )
        return self._standings[number]

    def _loss(self, quality: Mapping[str, float]) -> float:
        if self._objective is None:
            return math.nan
        return self._objective.sign * self._objective(Measurements(quality=dict(quality)))
