"""Whole searches under a memory limit: what does not fit is not trained, and what fits is not refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from autopeft.cluster.campaign import Done, Refused
from autopeft.domain.candidate import Candidate
from autopeft.domain.ports import EvaluationTask
from autopeft.search import make_sampler
from tests.fakes.campaigns import drive, store_of
from tests.fakes.forecasts import MIB, FakeForecast, admitting, measuring, needs
from tests.fakes.handmade import handmade_space
from tests.fakes.searches import toy_campaign, toy_objectives
from tests.fakes.stores import MemoryRunStore


def quarter() -> float:
    """The bytes that a quarter of random candidates of the handmade space exceed."""
    sampler = make_sampler("random", handmade_space(), toy_objectives(), 99)
    found = sorted(needs(one.candidate) for number in range(400) if (one := sampler.ask(number)) is not None)
    limit = found[int(0.75 * len(found))]
    assert 0.2 < sum(one > limit for one in found) / len(found) <= 0.25
    return limit


@pytest.mark.parametrize(
    ("sampler", "seed"), [("random", 0), *(pytest.param("tpe", seed, marks=pytest.mark.slow) for seed in range(3))]
)
def test_where_a_quarter_of_a_space_is_too_large_hardly_any_trained_trial_is(
    tmp_path: Path, sampler: str, seed: int
) -> None:
    limit, noise = quarter(), 0.005
    off = {}

    def said(candidate: Candidate) -> float:
        draw = off.setdefault(candidate.digest, random.Random(f"{seed}{candidate.digest}").gauss(0, noise))
        return needs(candidate) * (1 + draw)

    store = store_of("100")
    objectives = toy_objectives("accuracy")  # grows with the rank: nothing but the limit leads away from it
    proposals = make_sampler(sampler, handmade_space(), objectives, seed)
    campaign = toy_campaign(
        store, tmp_path, sampler=proposals, objectives=objectives, admission=admitting(limit, FakeForecast(said))
    )
    campaign.open()
    drive(campaign, measuring(limit))
    campaign.close()
    trained = [trial for trial in store.trials() if not trial.refused]
    over = [trial for trial in trained if needs(trial.candidate) > limit]
    wrongly = [trial for trial in store.trials() if trial.refused and needs(trial.candidate) <= 0.9 * limit]
    assert len(trained) == 100
    assert len(over) <= 1
    assert wrongly == []
    assert sum(trial.refused for trial in store.trials()) > (10 if sampler == "random" else 0)


def test_a_predictor_that_says_too_little_is_corrected_by_what_the_search_measures(tmp_path: Path) -> None:
    limit = quarter()
    store, proposals = store_of("60"), make_sampler("random", handmade_space(), toy_objectives(), 0)
    too_little = FakeForecast(lambda one: 0.7 * needs(one) - 20 * MIB)
    campaign = toy_campaign(store, tmp_path, sampler=proposals, admission=admitting(limit, too_little))
    campaign.open()
    drive(campaign, measuring(limit))
    campaign.close()
    trained = [trial for trial in store.trials() if not trial.refused]
    assert sum(needs(trial.candidate) > limit for trial in trained[8:]) == 0
    assert not [trial for trial in store.trials() if trial.refused and needs(trial.candidate) <= 0.9 * limit]


def test_a_search_that_goes_on_refuses_and_corrects_as_an_undisturbed_one(tmp_path: Path) -> None:
    limit = quarter()

    def session(store: MemoryRunStore, trials: int | None) -> None:
        proposals = make_sampler("tpe", handmade_space(), toy_objectives(), 5)
        forecast = FakeForecast(lambda one: 0.9 * needs(one) + random.Random(one.digest).uniform(-4, 4) * MIB)
        campaign = toy_campaign(store, tmp_path, sampler=proposals, admission=admitting(limit, forecast))
        campaign.open()
        outcome_of = measuring(limit)
        while not isinstance(task := campaign.next(), Done):
            if isinstance(task, Refused):
                continue
            assert isinstance(task, EvaluationTask)
            if trials is not None and store.spent().trials >= trials:
                break  # killed while this one ran
            campaign.finish(task, outcome_of(task))
        campaign.close()

    whole, stopped = store_of("24"), store_of("24")
    session(whole, None)
    for after in (4, 5, 17, None):
        session(stopped, after)
    for one, other in zip(whole.trials(), stopped.trials(), strict=True):
        assert one.digest == other.digest
        assert one.status is other.status
        assert one.measurements == other.measurements
        assert one.failure == other.failure
    assert any(trial.refused for trial in whole.trials())
