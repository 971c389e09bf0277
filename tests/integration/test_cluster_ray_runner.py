"""The Ray runner keeps the runner's promises, also where worker processes die."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.tune  # noqa: F401 - before any session, as in a program that uses Ray itself

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.ray_runner import RayRunner
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.domain.trial import FailureReason, TrialStatus
from tests.contract.runner_contract import ENDS, FAULTS, Program, RunnerContract, stored


@pytest.mark.slow
class TestRayRunner(RunnerContract):
    name = "ray"
    workers = 2
    faults = {**FAULTS, "9": "kill-once", "10": "exit"}
    ends = {**ENDS, 10: (TrialStatus.LOST, FailureReason.WORKER_DIED)}
    log_repeats = frozenset({9, 10})

    def run(self, reference: EvaluatorRef, campaign: Campaign) -> RunEnd:
        resources = Resources(workers=self.workers, cpus_per_worker=1, gpus_per_worker=0)
        return RayRunner(reference, resources).run(campaign)


@pytest.mark.slow
def test_a_worker_that_ray_ends_for_want_of_host_memory_makes_its_trial_infeasible(tmp_path: Path) -> None:
    # So little that the worker's own imports are too much.
    little = {"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "100"}
    program = Program(tmp_path, little, runner="ray", trials=1, evaluator={"delay_s": 20})
    assert program.end() == 0, program.lines
    (trial,) = stored(tmp_path)
    assert (trial.status, trial.attempt) == (TrialStatus.INFEASIBLE, 1)
    assert trial.failure is not None
    assert trial.failure.reason is FailureReason.OUT_OF_MEMORY
    assert 0 < trial.seconds < 20
