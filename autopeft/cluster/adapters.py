"""Which trained adapters stay on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from autopeft.domain.trial import Trial


class KeptAdapters:
    """The artefact folders of a run; those of ended trials that are not on the front are deleted."""

    def __init__(self, root: Path, keep_all: bool) -> None:
        self._root = root
        self._keep_all = keep_all

    def folder(self, trial: Trial) -> Path:
        """Absolute path of the trial's folder; it need not exist."""
        return self._root.absolute() / trial.artefact_name

    def drop(self, trials: Iterable[Trial]) -> None:
        """Delete the folders of these ended trials, unless all are kept."""
        if self._keep_all:
            return
        for trial in trials:
            shutil.rmtree(self.folder(trial), ignore_errors=True)

    def sweep(self, trials: Iterable[Trial], front: frozenset[int]) -> None:
        """Delete what a killed session left: folders of ended trials that are not on the front."""
        self.drop(
            trial
            for trial in trials
            if trial.status.ended and trial.number not in front and self.folder(trial).is_dir()
        )
