"""A journal of recorded trainings: one JSON line each, safe against being killed at any moment."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.recording import RecordedTable, RecordedTraining, RecordingFacts


class Journal:
    """The first line holds the facts, every other one a training; appended to by one process at a time."""

    def __init__(self, path: Path, facts: RecordingFacts, earlier: RecordedTable | None = None) -> None:
        """Open it, or begin it.

        Args:
            path: Of the file.
            facts: Of the recording that goes on or begins.
            earlier: What a new journal begins with.

        Raises:
            UserError: where it is of another recording, or another process writes to it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(Problem("--out", f"another process writes to {path}", "", "Wait for it.")) from None
        self._file.seek(0)
        whole = _whole_lines(self._file.read())
        self._file.truncate(sum(len(line) + 1 for line in whole))
        self.trainings: list[RecordedTraining] = []
        self.facts = facts
        if whole:
            self.facts = RecordingFacts.model_validate_json(whole[0])
        elif earlier is not None:
            self.facts = earlier.facts
        changed = [key for key, value in self.facts.identity.items() if facts.identity[key] != value]
        if changed:
            self._file.close()
            if not whole:
                path.unlink()
            found = f"{path} was begun with other {', '.join(changed)}"
            raise UserError(Problem("--out", found, "", "Repeat the first command, or choose another --out."))
        if whole:
            self.trainings = [RecordedTraining.model_validate_json(line) for line in whole[1:]]
            return
        self._append(self.facts.model_dump_json())
        if earlier is not None:
            for trainings in earlier.trainings.values():
                for one in trainings:
                    self.add(one)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def done(self) -> frozenset[tuple[int, int]]:
        """Configuration and seed of every training."""
        return frozenset((one.config, one.seed) for one in self.trainings)

    def add(self, training: RecordedTraining) -> None:
        """Keep a training; it is on the disk when this returns."""
        self._append(training.model_dump_json(exclude_none=True))
        self.trainings.append(training)

    def _append(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _whole_lines(content: bytes) -> list[bytes]:
    """The lines that were written whole: a killed process may have left a part of the last one."""
    lines = content.split(b"\n")[:-1]
    while lines and not _is_json(lines[-1]):
        lines.pop()
    return lines


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
