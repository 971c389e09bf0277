"""When a trial's checkpoint is written, and whether one that is there can be gone on with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autopeft.domain.candidate import digest_of
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import CHECKPOINT
from autopeft.evaluate.checkpoint import (
    CheckpointError,
    bytes_of,
    read_checkpoint,
    remove_unfinished,
    write_checkpoint,
)
from autopeft.evaluate.outcomes import first_line

SHARE = 0.05
"""Of the time of a training, saving takes about this much at most: full fine-tuning writes the weights and twice as
much of the optimiser's, so that a minute may be too short a time between two."""
QUICK_S = 2.0
"""Saving before leaving may take as long as a step, or this long."""
LEFT_FREE_BYTES = 512 << 20
"""Nothing is saved that would leave less of the disk, on which the trial table lies too."""
_BYTES_PER_S = 100 << 20
"""What a slow disk takes, until the first checkpoint has shown it."""
_LIBRARIES = ("autopeft", "torch", "transformers", "peft")


def recipe_digest(*parts: Any) -> str:
    """Identity of all that the trials of one evaluator share, the versions of what computes included."""
    return digest_of([*parts, {name: version(name) for name in _LIBRARIES}])


class Checkpoints:
    """The one checkpoint of one trial."""

    def __init__(self, task: EvaluationTask, recipe: str, every_s: float | None) -> None:
        """`recipe` is the evaluator's `recipe_digest`; with no `every_s`, nothing is written or gone on with."""
        self._file = Path(task.artefact_dir) / CHECKPOINT
        self._identity = digest_of([recipe, task.candidate.digest, task.seed])
        self._every_s = every_s
        self._last = time.monotonic()
        self._took_s: float | None = None
        self.problem = ""
        """Why one that was there was not used, or why none could be written."""

    @property
    def enabled(self) -> bool:
        """Whether any are written."""
        return self._every_s is not None

    def found(self) -> dict[str, Any] | None:
        """What an earlier attempt left, if it can be gone on with; `problem` says why not."""
        if not self.enabled:
            return None
        remove_unfinished(self._file.parent)
        try:
            return read_checkpoint(self._file, self._identity)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            self.refuse(error)
            return None

    def refuse(self, error: Exception) -> None:
        """Say that the checkpoint which was found cannot be used."""
        self.problem = f"its checkpoint was not used: {first_line(error)}"

    def due(self) -> bool:
        """Whether the time asked for has passed since the last one, and another is worth its time."""
        return self._every_s is not None and time.monotonic() - self._last >= self._every_s and self.worth()

    def worth(self) -> bool:
        """Whether the last one is so long ago that another adds no more than `SHARE` to the time; so is the first."""
        return self.enabled and time.monotonic() - self._last >= (self._took_s or 0.0) / SHARE

    def quick(self, size: Callable[[], int], step_s: float) -> bool:
        """Whether writing so many bytes (asked for where none were written yet) takes no longer than a step."""
        if not self.enabled:
            return False
        expected = self._took_s if self._took_s is not None else size() / _BYTES_PER_S
        return expected <= max(step_s, QUICK_S)

    def write(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write one in the place of the last. Where that fails, the last stays, and `problem` says why."""
        if not self.enabled:
            return
        started = time.monotonic()
        try:
            found = state()
            self._check_room(found)
            write_checkpoint(self._file, self._identity, found)
        except (OSError, RuntimeError, MemoryError, TypeError, ValueError) as error:
            self.problem = f"no checkpoint could be written: {first_line(error)}"
        self._last = time.monotonic()
        self._took_s = self._last - started

    def delete(self) -> None:
        """Remove it, and the folder if it held nothing else."""
        self._file.unlink(missing_ok=True)
        folder = self._file.parent
        if folder.is_dir():
            remove_unfinished(folder)
            if not any(folder.iterdir()):
                folder.rmdir()

    def _check_room(self, state: Mapping[str, Any]) -> None:
        there = next(folder for folder in self._file.parents if folder.is_dir())
        needed, free = bytes_of(state), shutil.disk_usage(there).free
        if free - needed < LEFT_FREE_BYTES:
            raise OSError(f"it takes {needed / 2**20:.0f} MiB and the disk has {free / 2**20:.0f} MiB left")
