"""The Ray runner keeps the runner's promises, also where worker processes die."""

from __future__ import annotations

import pytest

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.ray_runner import RayRunner
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.domain.trial import FailureReason, TrialStatus
from tests.contract.runner_contract import ENDS, FAULTS, RunnerContract


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
