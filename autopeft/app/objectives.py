"""Objectives by name, and those of a search that names none."""

from __future__ import annotations

from autopeft import plugins
from autopeft.domain.objective import Objective
from autopeft.domain.results import TaskInfo


def default_objectives(task: TaskInfo) -> tuple[Objective, ...]:
    """The task's headline metric against training memory."""
    return load_objectives((task.metric, "train_peak_bytes"))


def load_objectives(names: tuple[str, ...]) -> tuple[Objective, ...]:
    """Objectives by name.

    Raises:
        UserError: where one is unknown.
    """
    return tuple(plugins.load(plugins.OBJECTIVES, name, "objectives") for name in names)
