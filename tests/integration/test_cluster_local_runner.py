"""The local runner keeps the runner's promises, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.local_runner import LocalRunner
from autopeft.domain.budget import Budget
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.search.samplers import make_sampler
from autopeft.store import open_store
from tests.contract.runner_contract import ROOT, RunnerContract
from tests.fakes.searches import ToySpace, toy_campaign, toy_objectives, toy_record


class TestLocalRunner(RunnerContract):
    name = "local"

    def run(self, reference: EvaluatorRef, campaign: Campaign) -> RunEnd:
        return LocalRunner(reference, Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0)).run(campaign)


def test_local_runner_needs_no_ray() -> None:
    code = "import autopeft.cluster.local_runner, sys; raise SystemExit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_a_search_in_three_sessions_trains_what_one_session_would(tmp_path: Path, name: str) -> None:
    whole = search_in_sessions(tmp_path / "whole", name, [24])
    assert search_in_sessions(tmp_path / "parts", name, [7, 15, 24]) == whole
    assert len(set(whole)) == 24


def search_in_sessions(folder: Path, sampler: str, budgets: list[int]) -> list[str]:
    """Digests of the trials, with one worker; faults at 3 and 9 are part of the history."""
    folder.mkdir()
    reference = EvaluatorRef(target="tests.fakes.evaluators:build", arguments={"faults": {"3": "oom", "9": "nan"}})
    resources = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0)
    for trials in budgets:
        store = open_store(f"sqlite:///{folder / 'trials.sqlite'}")
        run = store.open("toy") or store.create(toy_record())
        run.set_budget(Budget(trials=trials))
        proposals = make_sampler(sampler, ToySpace(), toy_objectives(), 0, None)
        LocalRunner(reference, resources).run(toy_campaign(run, folder, sampler=proposals))
        digests = [trial.digest for trial in run.trials()]
        store.close()
    return digests
