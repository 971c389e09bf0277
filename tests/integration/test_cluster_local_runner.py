"""The local runner keeps the runner's promises, without Ray."""

from __future__ import annotations

import subprocess
import sys

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.local_runner import LocalRunner
from autopeft.domain.ports import EvaluatorRef, Resources
from tests.contract.runner_contract import ROOT, RunnerContract


class TestLocalRunner(RunnerContract):
    name = "local"

    def run(self, reference: EvaluatorRef, campaign: Campaign) -> RunEnd:
        return LocalRunner(reference, Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0)).run(campaign)


def test_local_runner_needs_no_ray() -> None:
    code = "import autopeft.cluster.local_runner, sys; raise SystemExit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
