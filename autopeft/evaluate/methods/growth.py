"""When the ranks of modules grow during a training, by how much, and which modules come first: numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LATEST = 0.5
"""The share of the steps after which nothing grows any more, so that what came last is trained as well."""


@dataclass(frozen=True)
class Schedule:
    """The growth of some modules from rank 1 to an average rank."""

    at: tuple[int, ...]
    """The steps, counted from 1, after which modules grow; ascending."""
    modules: int
    target: int
    """Average rank in the end."""
    block: int
    """Ranks by which a module grows at a time."""
    top: int
    """Modules that grow at a time."""

    @property
    def total(self) -> int:
        """Ranks of all modules in the end."""
        return self.target * self.modules

    def due(self, step: int, ranks: int) -> int:
        """Ranks to hand out after a step, where the modules have so many together.

        `top` blocks, or as many more as it takes to arrive with the growths that are left.
        """
        left = sum(one >= step for one in self.at)
        if step not in self.at:
            return 0
        missing = self.total - ranks
        return min(missing, max(self.top * self.block, math.ceil(missing / left)))


def schedule_of(steps: int, modules: int, target: int, *, top: float, warmup: float, interval: float) -> Schedule:
    """The schedule of a training of so many optimiser steps.

    The first growth comes after the share `warmup` of the steps, the next ones every `interval` of them, none after
    `LATEST` nor after the last step. In a training of one step nothing grows.

    Args:
        steps: Optimiser steps planned.
        modules: How many modules grow.
        target: Their average rank in the end; a block is half of it, as published for 2, 4, 6 and 8.
        top: Share of the modules that grow at a time; at least one does.
        warmup: Share of the steps before the first growth; at least one step.
        interval: Share of the steps between two growths; at least one step.
    """
    first, every = max(1, round(warmup * steps)), max(1, round(interval * steps))
    at = tuple(range(first, min(max(first, int(LATEST * steps)), steps - 1) + 1, every))
    block = max(1, target // 2, math.ceil((target - 1) / len(at)) if at else 0)
    return Schedule(at, modules, target, block, max(1, round(top * modules)))


def shared_out(scores: Sequence[float], ranks: Sequence[int], most: Sequence[int], due: int, block: int) -> list[int]:
    """By how much each module grows: a block each in the order of their scores, until `due` ranks are handed out.

    Equal scores go by position. No module exceeds `most`; where all have had a block, the order is gone through again.
    """
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    found = [0] * len(scores)
    due = min(due, sum(most) - sum(ranks))
    while due > 0:
        for index in order:
            more = min(block, most[index] - ranks[index] - found[index], due)
            found[index] += more
            due -= more
    return found
