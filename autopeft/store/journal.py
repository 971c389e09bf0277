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
            earlier: What the table holds; what of it the journal lacks is taken over.

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
        known = [RecordingFacts.model_validate_json(whole[0])] if whole else []
        known += [earlier.facts] if earlier is not None else []
        self.facts = known[0] if known else facts
        changed = [key for key, value in facts.identity.items() if any(one.identity[key] != value for one in known)]
        if changed:
            self._file.close()
            if not whole:
                path.unlink()
            found = f"{path} was begun with other {', '.join(changed)}"
            raise UserError(Problem("--out", found, "", "Repeat the first command, or choose another --out."))
        self.trainings = [RecordedTraining.model_validate_json(line) for line in whole[1:]]
        # Only what is lacking, so that a process killed while it did this is made up for.
        lacking = [one for some in earlier.trainings.values() for one in some] if earlier is not None else []
        lacking = [one for one in lacking if (one.config, one.seed) not in self.done]
        said = [] if whole else [self.facts.model_dump_json()]
        self._append(*said, *(_line(one) for one in lacking))
        self.trainings += lacking

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
        self._append(_line(training))
        self.trainings.append(training)

    def _append(self, *lines: str) -> None:
        self._file.write(b"".join(line.encode() + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(training: RecordedTraining) -> str:
    return training.model_dump_json(exclude_none=True)


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
