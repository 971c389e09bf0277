"""The evaluator that really trains, with a log of every step and a kill at a chosen one."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

from autopeft.evaluate import resumption
from autopeft.evaluate.pipeline import TorchEvaluator, open_evaluator
from autopeft.evaluate.tally import Tally
from autopeft.evaluate.train import Step
from autopeft.evaluate.trial_run import TrialRun


def open_watched(spec: dict[str, Any], log: str, kills: list[list[int]]) -> TorchEvaluator:
    """Target of an `EvaluatorRef`.

    Args:
        spec: Of the search.
        log: File that gets a line `TRIAL ATTEMPT STEP` for every step that was done.
        kills: Trials, attempts and steps after which this process kills itself.
    """
    note = Tally.note
    running: list[TrialRun] = []
    begin = TrialRun._begin

    def began(self: TrialRun, saved: Any) -> None:
        running[:] = [self]
        begin(self, saved)

    def noted(self: Tally, step: Step) -> None:
        note(self, step)
        task = running[0]._task
        with Path(log).open("a") as file:
            file.write(f"{task.number} {task.attempt} {step.number}\n")
        if [task.number, task.attempt, step.number] in kills:
            os.kill(os.getpid(), signal.SIGKILL)

    Tally.note, TrialRun._begin = noted, began  # type: ignore[method-assign]
    resumption.SHARE = math.inf  # steps are so short here that saving after each would be too much of the time
    return open_evaluator(spec, threads=1, device="cpu")


def steps_done(log: Path) -> dict[int, list[tuple[int, int]]]:
    """Attempt and number of every step that was done, by trial."""
    found: dict[int, list[tuple[int, int]]] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        trial, attempt, step = (int(word) for word in line.split())
        found.setdefault(trial, []).append((attempt, step))
    return found
