"""A trial in the hands of a worker, as the campaign knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autopeft.domain.ports import EvaluationTask


@dataclass(frozen=True)
class Running:
    """A task that was handed out and has not ended."""

    task: EvaluationTask
    since: float
    """Clock of `time.monotonic`, in seconds."""
    foretold: dict[str, Any] = field(default_factory=dict)
    """Fields of its measurements that were predicted when it began."""
    told: list[str] = field(default_factory=list)
    """Problems of its checkpoint that listeners know of."""
