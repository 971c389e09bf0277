"""The bridge between Tune's search interface and a campaign."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from autopeft.cluster.campaign import Campaign, Done, Refused, Wait
from autopeft.cluster.worker import Key, raise_told
from autopeft.domain.measurements import Rung, TakenUp
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import Outcome

T = TypeVar("T")

DIED = "Its worker process died: it was killed, ran out of host memory, or crashed below Python."
OUT_OF_MEMORY = "Ray ended its worker because the machine ran out of memory."
_OUT_OF_MEMORY_MARK = "due to the node running low on memory"
"""In the text of every `ray.exceptions.OutOfMemoryError`; Tune keeps the error's text and not its type."""
_REFUSING_S = 1.0
"""So long a search may refuse one candidate after another before it lets Tune go on."""
UNBUILT = "Its worker could not build the evaluator."


class CampaignSearcher(Searcher):
    """Gives Tune the campaign's tasks, at most `workers` at a time, and the campaign Tune's results.

    Tune would stage one trial more than it can run, proposed without the results of those that run; so it is given
    nothing while every worker is busy. Tune swallows what a searcher raises when a trial ends; so an error is kept
    in `error` and the runner raises it.
    """

    def __init__(self, campaign: Campaign, workers: int) -> None:
        super().__init__()
        self._campaign = campaign
        self._workers = workers
        self._tasks: dict[str, EvaluationTask] = {}
        self._out_of_memory: set[str] = set()
        self._paused: set[str] = set()
        self.leaving = False
        """Whether nothing more is to be started."""
        self._some_worker_was_built = False
        self.why: str | None = None
        """Why the search ended; None while it runs."""
        self.error: Exception | None = None

    @property
    def all_paused(self) -> bool:
        """Whether every task that runs has come to a place where it can be left."""
        return self._tasks.keys() <= self._paused

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.error is not None or self.leaving or len(self._tasks) >= self._workers:
            return None
        step = self._guarded(lambda: self._next(trial_id))
        if isinstance(step, Done):
            self.why = step.why
            return str(Searcher.FINISHED)
        if step is None or isinstance(step, Wait):
            return None
        self._tasks[trial_id] = step
        return {Key.TASK.value: step.model_dump_json()}

    def _next(self, worker: str) -> EvaluationTask | Wait | Done:
        """What to train; from time to time nothing, so that Tune can see to its workers and to Ctrl-C meanwhile."""
        began = time.monotonic()
        while isinstance(step := self._campaign.next(worker=worker), Refused):
            if time.monotonic() - began > _REFUSING_S:
                return Wait()
        return step

    def goes_on(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take a rung, and say whether its trial trains on; where not, it ends as stopped early."""
        task = self._tasks.get(trial_id)
        if task is None or Key.RUNG not in result:
            return True
        self._some_worker_was_built = True
        rung = Rung.model_validate_json(result[Key.RUNG])
        if self._guarded(lambda: self._campaign.rung(task.number, task.attempt, rung)) is not False:
            return True
        del self._tasks[trial_id]
        self._guarded(lambda: self._campaign.stopped(task))
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._guarded(lambda: self._take(trial_id, result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        def complete() -> None:
            if result is not None and not error:
                self._take(trial_id, result)
            task = self._tasks.pop(trial_id, None)
            if task is None:
                return
            if trial_id in self._out_of_memory:
                self._campaign.out_of_memory(task, OUT_OF_MEMORY)
            else:
                self._campaign.lost(task, DIED)

        self._guarded(complete)

    def on_trial_error(self, trial_id: str, text: str) -> None:
        """Take note of why an actor ended; `on_trial_complete` follows."""
        if _OUT_OF_MEMORY_MARK in text:
            self._out_of_memory.add(trial_id)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the trial table is the only truth."""

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Nothing is ever read back."""

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        # Whatever Ray pickles of this must hold no campaign: its store knows the database's password.
        return (Searcher, ())

    def _take(self, trial_id: str, result: dict[str, Any]) -> None:
        task = self._tasks.get(trial_id)
        if task is None:
            return
        if Key.RUNG in result:
            return  # `goes_on` took it
        if Key.PAUSED in result:
            self._paused.add(trial_id)
        elif Key.TAKEN_UP in result:
            taken_up = TakenUp.model_validate_json(result[Key.TAKEN_UP])
            self._campaign.taken_up(task.number, task.attempt, taken_up)
        elif Key.OUTCOME in result:
            self._some_worker_was_built = True
            del self._tasks[trial_id]
            self._campaign.finish(task, Outcome.model_validate_json(result[Key.OUTCOME]))
        elif Key.UNBUILDABLE in result:
            if not self._some_worker_was_built:
                raise_told(result[Key.UNBUILDABLE])
            del self._tasks[trial_id]
            self._campaign.lost(task, UNBUILT)

    def _guarded(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except Exception as error:
            self.error = self.error or error
            return None


class RungScheduler(FIFOScheduler):
    """Trials in the order in which they came, each stopped at the rung at which the campaign says so.

    It hears of rungs before the searcher, which is not told the result that ends a trial. It also tells the searcher
    the error of a trial, which Tune keeps from it.
    """

    def __init__(self, searcher: CampaignSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> str:
        return self.CONTINUE if self._searcher.goes_on(trial.trial_id, result) else self.STOP

    def on_trial_error(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        try:
            text = Path(trial.error_file or "").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        self._searcher.on_trial_error(trial.trial_id, text)
