"""Objectives by name, and those of a search that names none."""

from __future__ import annotations

from autopeft import plugins
from autopeft.domain.objective import Objective
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import SearchSpec

ELSEWHERE = "predicted_peak_bytes"
"""The objective that `predict_for` adds."""


def default_objectives(task: TaskInfo) -> tuple[Objective, ...]:
    """The task's headline metric against training memory."""
    return load_objectives((task.metric, "train_peak_bytes"))


def objectives_of(spec: SearchSpec, task: TaskInfo) -> tuple[Objective, ...]:
    """What a search goes by: the named objectives or the default ones, and the memory elsewhere where it is asked for.

    Raises:
        UserError: where one is unknown.
    """
    named = load_objectives(spec.objectives) if spec.objectives else default_objectives(task)
    if spec.predict_for is None or any(one.name == ELSEWHERE for one in named):
        return named
    return (*named, *load_objectives((ELSEWHERE,)))


def load_objectives(names: tuple[str, ...]) -> tuple[Objective, ...]:
    """Objectives by name.

    Raises:
        UserError: where one is unknown.
    """
    return tuple(plugins.load(plugins.OBJECTIVES, name, "objectives") for name in names)
