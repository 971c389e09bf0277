"""The process that trains: a Tune trainable that keeps its evaluator from trial to trial."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from enum import StrEnum
from typing import Any

import psutil
from ray.tune import Trainable

from autopeft.cluster.attempt import DETAIL_LINES, Attempt
from autopeft.cluster.pausing import POLL_S, PauseFlag
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.measurements import Report, Rung
from autopeft.domain.ports import EvaluationTask, Evaluator, EvaluatorRef
from autopeft.domain.trial import Outcome
from autopeft.plugins import locate

GROWTH_BYTES = 1 << 30
"""So much more than after its first trial a worker may hold before it is replaced."""

PARENT_CHECK_S = 0.5


class Key(StrEnum):
    """Fields of the configurations and results that travel; every value is a JSON text."""

    EVALUATOR = "evaluator"
    TASK = "task"
    PAUSE = "pause"
    """Name of the search's `PauseFlag`; not JSON."""
    TAKEN_UP = "taken_up"
    RUNG = "rung"
    PAUSED = "paused"
    OUTCOME = "outcome"
    UNBUILDABLE = "unbuildable"


class RecycledWorkerError(Exception):
    """Ends an actor that handed in its outcome and must not train again; Tune starts another one."""


class Worker(Trainable):
    """One actor: one step per rung; outcomes are results, never exceptions.

    An outcome that asks for a fresh process is reported without `done`, and the next step raises `RecycledWorkerError`:
    Tune then ends the actor in place of keeping it for the next trial. (`reset_config` returning False would fail the
    next trial instead.)
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._evaluator: Evaluator | None = None
        self._attempt: Attempt | None = None
        self._memory = MemoryWatch()
        _end_with_parent()
        PauseFlag(config[Key.PAUSE]).watch(self._pause)
        self._recycle = self._paused = False
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._recycle:
            raise RecycledWorkerError
        if self._attempt is None:
            try:
                self._evaluator = self._evaluator or locate(self._reference.target)(**self._reference.arguments)
            except Exception as error:
                self._recycle = True
                return {Key.UNBUILDABLE.value: _told(error), "done": False}
            self._attempt = Attempt(self._evaluator, self._task)
        if self._paused:
            time.sleep(POLL_S)  # the search is left, and what would be trained now is lost
            return {**_reported(None), "done": False}
        step = self._attempt.advance()
        if not isinstance(step, Outcome):
            report = step.get(self._task.number)
            self._paused = report is None
            return {**_reported(report), "done": False}
        self._recycle = step.recycle_worker or self._memory.grew()
        return {Key.OUTCOME.value: encode(step), "done": not self._recycle}

    def cleanup(self) -> None:
        if self._attempt is not None:
            self._attempt.close()
        if self._evaluator is not None:
            self._evaluator.close()

    def log_result(self, result: dict[str, Any]) -> None:
        """Tune would write its own files; the store has everything."""

    def _pause(self) -> None:
        attempt = self._attempt
        if attempt is not None:
            attempt.pause()

    def _take(self, config: dict[str, Any]) -> None:
        self._reference = EvaluatorRef.model_validate_json(config[Key.EVALUATOR])
        self._task = EvaluationTask.model_validate_json(config[Key.TASK])
        if self._attempt is not None:
            self._attempt.close()  # it was stopped early
        self._attempt = None
        self._paused = False


def _reported(report: Report | None) -> dict[str, str]:
    if report is None:
        return {Key.PAUSED.value: "true"}
    return {(Key.RUNG if isinstance(report, Rung) else Key.TAKEN_UP).value: encode(report)}


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone.

    Ray takes some seconds to notice that a driver was killed; by then the search gone on with could be training the
    same candidate.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="autopeft-parent", daemon=True).start()


class MemoryWatch:
    """Notices host memory that does not come back after a trial."""

    def __init__(self, process: psutil.Process | None = None) -> None:
        self._process = process or psutil.Process()
        self._after_first: int | None = None

    def grew(self) -> bool:
        """Called after each trial: whether the process holds `GROWTH_BYTES` more than after its first one."""
        held: int = self._process.memory_info().rss
        if self._after_first is None:
            self._after_first = held
        return held - self._after_first > GROWTH_BYTES


def encode(value: Report | Outcome) -> str:
    """JSON with NaN and infinity kept, which pydantic's own would turn into null."""
    return json.dumps(value.model_dump(mode="json"))


def raise_told(text: str) -> None:
    """Raise in the driver what kept a worker from building its evaluator.

    Raises:
        UserError: with the worker's own problems, where it was one; a RuntimeError with its traceback otherwise.
    """
    told = json.loads(text)
    if told["problems"]:
        raise UserError(*(Problem(**problem) for problem in told["problems"]))
    raise RuntimeError(f"no worker could build the evaluator:\n{told['detail']}")


def _told(error: Exception) -> str:
    problems = [vars(problem) for problem in error.problems] if isinstance(error, UserError) else []
    lines = "".join(traceback.format_exception(error)).splitlines()[-DETAIL_LINES:]
    return json.dumps({"problems": problems, "detail": "\n".join(lines)})
