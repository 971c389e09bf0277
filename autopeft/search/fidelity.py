"""What a stopped trial would have come to: low fidelity as an uncertain observation, never as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.domain.objective import Objective
from autopeft.domain.trial import Trial

LEAST = 5
"""Complete trials that passed the same rung, without which nothing is said."""

Course = Mapping[int, tuple[float, ...]]
"""Values of the objectives by optimiser step, at every rung that was reached."""


@dataclass(frozen=True)
class Outlook:
    """The end that a trial was heading for."""

    values: tuple[float, ...]
    """Per objective, the expected final value."""
    variance: tuple[float, ...]
    """Per objective, of the final value around it, the noise of a training included."""


def course(trial: Trial, objectives: Sequence[Objective]) -> Course:
    """What a trial's rungs say of the objectives; those that only its end tells are as measured."""
    found: dict[int, tuple[float, ...]] = {}
    if trial.measurements is None:
        return found
    for rung in trial.measurements.rungs:
        then = trial.measurements.model_copy(update={"quality": rung.quality, "train_s": rung.train_s})
        values = tuple(objective(then) for objective in objectives)
        if all(math.isfinite(value) for value in values):
            found[rung.step] = values
    return found


def outlook(stopped: Course, complete: Sequence[tuple[Course, tuple[float, ...]]]) -> Outlook | None:
    """By a line through what complete trials had at the rung and at the end, per objective.

    `complete` holds courses and final values. Least squares; a slope below 0 is taken for 0, so that a rung that says
    nothing leaves the mean of the ends and their whole variance. None where too few trials passed the rung.
    """
    if not stopped:
        return None
    step = max(stopped)
    pairs = [(passed[step], final) for passed, final in complete if step in passed]
    if len(pairs) < LEAST:
        return None
    then, ends = (np.array(some) for some in zip(*pairs, strict=True))
    values, variances = [], []
    for column, value in enumerate(stopped[step]):
        x, y = then[:, column] - then[:, column].mean(), ends[:, column] - ends[:, column].mean()
        spread = float(x @ x)
        slope = max(0.0, float(x @ y) / spread) if spread > 0 else 0.0
        away = value - float(then[:, column].mean())
        rest = float(np.sum((y - slope * x) ** 2)) / (len(pairs) - 2)
        # The variance of a prediction from a fitted line, Draper and Smith, eq. 3.2.2.
        variances.append(rest * (1 + 1 / len(pairs) + (away**2 / spread if spread > 0 and slope > 0 else 0.0)))
        values.append(float(ends[:, column].mean()) + slope * away)
    return Outlook(tuple(values), tuple(variances))
