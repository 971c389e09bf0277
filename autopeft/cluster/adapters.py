"""Which trained adapters, and which checkpoints, stay on disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from autopeft.domain.measurements import Measurements
from autopeft.domain.results import Front
from autopeft.domain.trial import CHECKPOINT, Trial, TrialStatus

MOST_CHECKPOINTS = 32
"""Of stopped trials that are kept at once: each is a file of about three times what its trial trains, in float32."""
_LEFTOVERS = ".[0-9][0-9][0-9][0-9]*-*.*"
"""Folders on their way to or from a trial's place, as a killed process leaves them."""


class KeptAdapters:
    """The artefact folders of a run; those of ended trials that are not on the front are deleted.

    A trial that was stopped early keeps its checkpoint, from which it can be gone on with, until the run is over, a
    point of the front dominates it (unless `keep_dominated`), or more than `MOST_CHECKPOINTS` are kept and it is the
    one least wanted.
    """

    def __init__(self, root: Path, keep_all: bool, keep_dominated: bool = False) -> None:
        self._root = root
        self._keep_all = keep_all
        self._keep_dominated = keep_dominated
        self._stopped: dict[int, Trial] = {}

    def folder(self, trial: Trial) -> Path:
        """Absolute path of the trial's folder; it need not exist."""
        return self._root.absolute() / trial.artefact_name

    def drop(self, trials: Iterable[Trial], front: Front) -> None:
        """Delete the folders of these ended trials, unless all are kept, and checkpoints that nobody needs any more."""
        for trial in trials:
            if trial.status is TrialStatus.STOPPED_EARLY:
                self._stopped[trial.number] = trial
            else:
                self._delete(trial)
        if not self._keep_dominated:
            self.drop_checkpoints([number for number, trial in self._stopped.items() if dominated(trial, front)])

    @property
    def checkpoints(self) -> frozenset[int]:
        """Numbers of the stopped trials that can be gone on with."""
        return frozenset(
            number for number, trial in self._stopped.items() if (self.folder(trial) / CHECKPOINT).is_file()
        )

    def forget(self, number: int) -> None:
        """A stopped trial trains on: its folder is its own again."""
        self._stopped.pop(number, None)

    def drop_checkpoints(self, numbers: Iterable[int]) -> None:
        """Delete what is kept of these stopped trials."""
        for number in numbers:
            self._delete(self._stopped.pop(number))

    def drop_stopped(self) -> None:
        """Delete what is kept of stopped trials: the run is over."""
        for trial in self._stopped.values():
            self._delete(trial)
        self._stopped = {}

    def sweep(self, trials: Iterable[Trial], front: Front) -> None:
        """Delete what a killed session left: folders of ended trials that are not on the front, and halves of them."""
        self.drop(
            (
                trial
                for trial in trials
                if trial.status.ended and trial.number not in front.numbers and self.folder(trial).is_dir()
            ),
            front,
        )
        for left in self._root.glob(_LEFTOVERS):
            shutil.rmtree(left, ignore_errors=True)

    def _delete(self, trial: Trial) -> None:
        folder = self.folder(trial)
        if not self._keep_all:
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / CHECKPOINT).exists():
            (folder / CHECKPOINT).unlink()
            if not any(folder.iterdir()):
                folder.rmdir()


def dominated(trial: Trial, front: Front) -> bool:
    """Whether a member of the front was nowhere worse than a stopped trial, and somewhere better, after as many steps.

    Objectives that the stopped trial has no number for do not count. Members that reported nothing after as many steps
    cannot be compared.
    """
    measured = trial.measurements
    if measured is None or not measured.rungs:
        return False
    step = measured.rungs[-1].step
    values = [objective.sign * objective(measured) for objective in front.objectives]
    for member in front.members:
        then = _after(member.trial.measurements, step)
        if then is None:
            continue
        others = [objective.sign * objective(then) for objective in front.objectives]
        pairs = [(one, other) for one, other in zip(values, others, strict=True) if math.isfinite(one)]
        if all(other <= one for one, other in pairs) and any(other < one for one, other in pairs):
            return True
    return False


def _after(measured: Measurements | None, step: int) -> Measurements | None:
    """What a trial had reached after so many steps."""
    found = next((rung for rung in measured.rungs if rung.step == step), None) if measured is not None else None
    if measured is None or found is None:
        return None
    return measured.model_copy(update={"quality": found.quality, "train_s": found.train_s, "steps": step})
