"""The search in the calling process: one worker, no Ray."""

from __future__ import annotations

from collections.abc import Mapping

from autopeft.cluster.attempt import Attempt
from autopeft.cluster.campaign import Campaign, Done, Refused, RunEnd, Wait
from autopeft.cluster.interruption import Interrupted, Interruption
from autopeft.domain.measurements import Report, Rung
from autopeft.domain.ports import EvaluationTask, Evaluator, EvaluatorRef, Resources
from autopeft.domain.trial import Outcome
from autopeft.plugins import locate

INTERRUPTED = "Interrupted; the trials that ran are taken up again when the search goes on."


class LocalRunner:
    """Runs trials one after another with one evaluator, built when the first trial starts."""

    def __init__(self, evaluator: EvaluatorRef, resources: Resources) -> None:
        self._reference = evaluator
        self._resources = resources
        self._evaluator: Evaluator | None = None

    def run(self, campaign: Campaign) -> RunEnd:
        """Open the campaign, run it to its end or to the first Ctrl-C, close it.

        Raises:
            RunBusyError: where another process has the run. What building the evaluator raises passes through.
        """
        with Interruption() as interruption:
            campaign.open()
            try:
                return self._loop(campaign, interruption)
            finally:
                try:
                    campaign.close()
                finally:
                    self._close_evaluator()

    def _loop(self, campaign: Campaign, interruption: Interruption) -> RunEnd:
        while not interruption.requested:
            step = campaign.next(worker="local")
            if isinstance(step, Done):
                return RunEnd(step.why, interrupted=False)
            if isinstance(step, Refused):
                continue
            if isinstance(step, Wait):
                raise RuntimeError("nothing runs and nothing may start: the campaign lost count")
            try:
                outcome = self._run_task(step, campaign, interruption)
            except Interrupted:
                break
            campaign.finish(step, outcome)
            if outcome.recycle_worker:
                self._close_evaluator()
        return RunEnd(INTERRUPTED, interrupted=True)

    def _run_task(self, task: EvaluationTask, campaign: Campaign, interruption: Interruption) -> Outcome:
        with interruption.leaving_at_once():
            if self._evaluator is None:
                self._evaluator = locate(self._reference.target)(**self._reference.arguments)
        attempt = Attempt(self._evaluator, task)
        try:
            while True:
                with interruption.leaving_at_once(attempt.pause):
                    step = attempt.advance()
                if isinstance(step, Outcome):
                    return step
                if not _report(campaign, task, step):
                    attempt.stop()
        finally:
            attempt.close()

    def _close_evaluator(self) -> None:
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None:
            evaluator.close()


def _report(campaign: Campaign, task: EvaluationTask, reports: Mapping[int, Report]) -> bool:
    """Whether the task trains on."""
    goes_on = True
    for number, report in reports.items():
        if isinstance(report, Rung):
            goes_on = campaign.rung(number, task.attempt, report) and goes_on
        else:
            campaign.taken_up(number, task.attempt, report)
    return goes_on
