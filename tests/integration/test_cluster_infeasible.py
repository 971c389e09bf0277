"""A whole search learns which candidates run out of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.cluster.local_runner import LocalRunner
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.domain.trial import TrialStatus
from autopeft.search import make_sampler
from autopeft.store import open_store
from tests.fakes.evaluators import burden
from tests.fakes.handmade import handmade_space
from tests.fakes.searches import toy_campaign, toy_objectives, toy_record

SHARE = 0.27
TRIALS = 120


@pytest.fixture(scope="module")
def limit() -> float:
    """The burden that the given share of random candidates exceeds."""
    sampler = make_sampler("random", handmade_space(), toy_objectives(), 99)
    proposals = [sampler.ask(number) for number in range(400)]
    burdens = sorted(burden(one.candidate) for one in proposals if one is not None)
    limit = burdens[int(len(burdens) * (1 - SHARE))]
    assert SHARE - 0.04 < sum(one > limit for one in burdens) / len(burdens) <= SHARE
    return limit


def out_of_memory(folder: Path, sampler: str, seed: int, limit: float) -> list[bool]:
    """Whether each trial of a search ran out of memory.

    It looks for accuracy alone, which grows with the rank: nothing but the failures leads away from them.
    """
    objectives = toy_objectives("accuracy")
    store = open_store(f"sqlite:///{folder / 'trials.sqlite'}")
    run = store.create(toy_record(budget=str(TRIALS), seed=seed))
    proposals = make_sampler(sampler, handmade_space(), objectives, seed)
    reference = EvaluatorRef(target="tests.fakes.evaluators:build", arguments={"limit": limit})
    campaign = toy_campaign(run, folder, sampler=proposals, objectives=objectives)
    LocalRunner(reference, Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0)).run(campaign)
    statuses = [trial.status for trial in run.trials()]
    store.close()
    assert len(statuses) == TRIALS
    assert set(statuses) <= {TrialStatus.COMPLETE, TrialStatus.INFEASIBLE}
    return [status is TrialStatus.INFEASIBLE for status in statuses]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_out_of_memory_is_learned_by_a_whole_search(tmp_path: Path, limit: float, seed: int) -> None:
    found = out_of_memory(tmp_path, "tpe", seed, limit)
    print(f"seed {seed}: {sum(found[:60])} and {sum(found[60:])} of 60")
    assert sum(found[60:]) <= 5


def test_a_random_search_does_not_learn_it(tmp_path: Path, limit: float) -> None:
    assert sum(out_of_memory(tmp_path, "random", 0, limit)[60:]) > 10
