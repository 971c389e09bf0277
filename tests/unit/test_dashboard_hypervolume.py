"""The hypervolume that the progress panel draws equals one computed from scratch after every trial."""

from __future__ import annotations

import numpy as np
import pytest

from autopeft.domain import pareto
from autopeft.domain.results import to_minimise
from tests.unit import dashboard_runs as runs


@pytest.mark.parametrize("names", [("accuracy", "train_peak_bytes"), ("accuracy", "train_peak_bytes", "latency_s")])
def test_every_step_equals_the_volume_of_all_trials_so_far(names: tuple[str, ...]) -> None:
    results = runs.results(50, names, seed=11)
    complete = [one for one in results.trials if one.values is not None]
    points = to_minimise(results.objectives, complete)
    ideal, nadir = points.min(axis=0), points.max(axis=0)
    reference = nadir + 0.1 * (nadir - ideal)
    reference[0] = 0.0  # the worst accuracy
    ended = sorted(results.trials, key=lambda one: one.trial.finished_at or 0.0)
    for step, point in enumerate(results.hypervolume_history(), start=1):
        so_far = [one for one in ended[:step] if one.values is not None]
        scaled = (to_minimise(results.objectives, so_far) - ideal) / (reference - ideal)
        assert point.hypervolume == pytest.approx(pareto.hypervolume(scaled, np.ones(len(names))))
