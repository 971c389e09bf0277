"""One task in the hands of an evaluator, step by step; nothing it does raises."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping

from autopeft.domain.measurements import Report
from autopeft.domain.ports import Evaluation, EvaluationTask, Evaluator
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus

DETAIL_LINES = 30
"""Lines of a traceback that a failure keeps."""


class Attempt:
    """A running evaluation of one task."""

    def __init__(self, evaluator: Evaluator, task: EvaluationTask) -> None:
        self._evaluator = evaluator
        self._task = task
        self._evaluation: Evaluation | None = None
        self._stop: frozenset[int] = frozenset()
        self._began = time.monotonic()

    def advance(self) -> Mapping[int, Report] | Outcome:
        """Train to the next report or to the end; an empty mapping where it may be left after `pause`.

        An evaluator that breaks its promise and raises gives a crashed outcome, and its process should be replaced.
        """
        try:
            if self._evaluation is None:
                self._evaluation = self._evaluator.evaluate([self._task])
                return next(self._evaluation)
            return self._evaluation.send(self._stop)
        except StopIteration as end:
            return self._outcome(end.value)
        except Exception as error:
            return crashed(error, time.monotonic() - self._began)

    def _outcome(self, outcomes: dict[int, Outcome] | None) -> Outcome:
        found = (outcomes or {}).get(self._task.number)
        if found is None:
            error = RuntimeError(f"the evaluator returned no outcome for trial {self._task.number}")
            return crashed(error, time.monotonic() - self._began)
        return found

    def pause(self) -> bool:
        """Ask it to come to a place where it can be left and gone on with; see `Evaluator.pause`."""
        return self._evaluator.pause()

    def stop(self) -> None:
        """End it at the rung where it stands: the next `advance` gives its outcome."""
        self._stop = frozenset({self._task.number})

    def close(self) -> None:
        """Leave the evaluation where it is; the PEFT modules are taken out again."""
        if self._evaluation is not None:
            self._evaluation.close()


def crashed(error: Exception, seconds: float) -> Outcome:
    """The outcome of an evaluation that raised."""
    lines = "".join(traceback.format_exception(error)).splitlines()[-DETAIL_LINES:]
    failure = Failure(
        reason=FailureReason.EXCEPTION, text=f"{type(error).__name__}: {error}".strip(), detail="\n".join(lines)
    )
    return Outcome(status=TrialStatus.CRASHED, failure=failure, seconds=seconds, recycle_worker=True)
