"""What is predicted not to fit never trains, costs nothing, and is learned from."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.app.known import KnownFromLayout
from autopeft.cluster.admission import Admission, Limits
from autopeft.cluster.campaign import Done
from autopeft.cluster.verdict import MOST_REFUSED
from autopeft.domain.candidate import Pruning
from autopeft.domain.events import Event, TrialEnded, TrialRefused, TrialStarted
from autopeft.domain.measurements import MemorySource, PeakMemory
from autopeft.domain.ports import Known, Proposal
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus
from autopeft.evaluate.methods import METHODS
from tests.fakes.campaigns import begun, drive, store_of
from tests.fakes.forecasts import MIB, FakeForecast, admitting, measuring, needs
from tests.fakes.searches import ToySampler, ToySpace, toy_campaign, toy_layout


def test_a_refused_candidate_is_a_row_without_an_attempt_and_costs_no_budget(tmp_path: Path) -> None:
    store, sampler, seen = store_of("6"), ToySampler(), list[Event]()
    limit = 50 * MIB + 32 * MIB
    campaign = toy_campaign(store, tmp_path, sampler=sampler, admission=admitting(limit), on_event=seen.append)
    campaign.open()
    assert drive(campaign, measuring(limit)) == "The budget of 6 trials is used up."
    refused = [trial for trial in store.trials() if trial.refused]
    trained = [trial for trial in store.trials() if not trial.refused]
    assert len(trained) == store.spent().trials == 6
    assert {trial.status for trial in trained} == {TrialStatus.COMPLETE}
    assert refused
    for trial in refused:
        assert trial.status is TrialStatus.INFEASIBLE
        assert trial.failure is not None
        assert trial.failure.reason is FailureReason.PREDICTED_OVER_LIMIT
        assert trial.failure.violation == pytest.approx(needs(trial.candidate) / limit - 1)
        assert trial.measurements is not None
        assert trial.measurements.foretold_peak == PeakMemory(
            live_bytes=round(needs(trial.candidate)), source=MemorySource.PREDICTED
        )
        assert trial.measurements.train_peak is None
        assert trial.seconds == trial.gpu_seconds == 0
    assert "MiB, and the limit is 82.0 MiB; it was not trained" in str(refused[0].failure)
    # The sampler hears of all, in the order of the rows; listeners hear of refusals apart.
    assert [one.trial.number for one in sampler.told] == list(range(len(store.trials())))
    assert [one.trial.number for one in seen if isinstance(one, TrialRefused)] == [trial.number for trial in refused]
    assert {type(one) for one in seen} >= {TrialStarted, TrialEnded, TrialRefused}
    campaign.close()


def test_every_trained_trial_keeps_its_prediction_beside_the_measurement(tmp_path: Path) -> None:
    store = store_of("5")
    campaign = toy_campaign(store, tmp_path, admission=admitting(None, FakeForecast(lambda one: needs(one) / 1.25)))
    campaign.open()
    drive(campaign, measuring(1e18))
    campaign.close()
    found = [trial.measurements for trial in store.trials()]
    for trial, measured in zip(store.trials(), found, strict=True):
        assert measured is not None
        assert measured.foretold_peak is not None
        assert measured.foretold_peak.live_bytes == round(needs(trial.candidate) / 1.25)
        assert measured.train_peak is not None
        assert measured.train_peak.source is MemorySource.TRACKED
        assert measured.trainable_parameters != 1234  # what was measured is not overwritten
    ratios = [one.calibrated_peak_bytes / one.train_peak.live_bytes for one in found]  # type: ignore[union-attr, operator]
    assert ratios == pytest.approx([0.8, 0.8, 0.8, 1, 1], rel=1e-6)


def test_a_search_in_which_nothing_fits_ends_and_says_so(tmp_path: Path) -> None:
    store = store_of("5")
    campaign = toy_campaign(store, tmp_path, admission=admitting(10 * MIB))
    campaign.open()
    why = drive(campaign)
    assert len(store.trials()) == MOST_REFUSED
    assert why.startswith(f"{MOST_REFUSED} candidates in a row were refused before they trained")
    assert "--max-memory" in why
    campaign.close()
    again = toy_campaign(store, tmp_path, admission=admitting(10 * MIB))
    again.open()
    assert again.next() == Done(why)
    again.close()


def test_a_small_space_that_is_used_up_says_how_many_were_refused(tmp_path: Path) -> None:
    store = store_of("50")
    limit = 50 * MIB + 32 * MIB
    campaign = toy_campaign(store, tmp_path, sampler=ToySampler(size=12), admission=admitting(limit))
    campaign.open()
    why = drive(campaign, measuring(limit))
    count = sum(trial.refused for trial in store.trials())
    assert why == f"Every candidate of the space was proposed; {count} of them were refused, as they would not fit."
    campaign.close()


def test_a_method_that_cannot_be_foretold_trains_as_before_and_is_told_of_once(tmp_path: Path) -> None:
    store, said = store_of("4"), list[str]()
    forecast = FakeForecast(lambda one: None)
    campaign = toy_campaign(store, tmp_path, admission=admitting(10 * MIB, forecast, say=said.append))
    campaign.open()
    drive(campaign)
    campaign.close()
    assert {trial.status for trial in store.trials()} == {TrialStatus.COMPLETE}
    assert len(said) == 1
    assert said[0].startswith("The memory of lora cannot be predicted (RuntimeError: no meta kernel)")


def test_a_forecast_that_cannot_be_opened_leaves_the_search_as_it_was(tmp_path: Path) -> None:
    store, said = store_of("3"), list[str]()

    def opening() -> FakeForecast:
        raise OSError("no such config")

    campaign = toy_campaign(store, tmp_path, admission=Admission(opening, say=said.append))
    campaign.open()
    drive(campaign)
    campaign.close()
    assert len(store.trials()) == 3
    assert said == ["Memory is not predicted in this search: OSError: no such config"]


def test_a_forecast_is_opened_when_the_first_candidate_is_asked_for_and_once_per_candidate(tmp_path: Path) -> None:
    opened, forecast = list[int](), FakeForecast()

    def opening() -> FakeForecast:
        opened.append(1)
        return forecast

    store = store_of("3")
    campaign = toy_campaign(store, tmp_path, admission=Admission(opening))
    campaign.open()
    assert opened == []
    drive(campaign)
    campaign.close()
    assert (opened, forecast.asked) == ([1], 3)


def test_what_a_worker_has_of_its_device_is_held_against_reserved_bytes(tmp_path: Path) -> None:
    forecast = FakeForecast(reserved=1.5)
    admission = Admission(lambda: forecast, limits=Limits(device_bytes=90 * MIB))
    small, large = (proposal(rank).candidate for rank in (8, 16))
    assert admission.refusal(small) is None  # 58 MiB live, 87 reserved
    found = admission.refusal(large)
    assert found is not None
    assert found.failure is not None
    assert found.failure.text.startswith("predicted to need 99.0 MiB, and what a worker has of its GPU is 90.0 MiB")


def proposal(rank: int) -> Proposal:
    values = {"rank": rank, "learning_rate": 1e-3, "layer": 0}
    return Proposal(values, ToySpace().resolve(values), {})


def test_running_out_of_memory_makes_the_search_more_careful(tmp_path: Path) -> None:
    store = store_of("9")
    admission = Admission(FakeForecast, limits=Limits(device_bytes=200 * MIB))
    campaign = toy_campaign(store, tmp_path, admission=admission)
    campaign.open()
    before = admission.calibration.bound(100 * MIB, "lora")
    task = begun(campaign)
    failure = Failure(reason=FailureReason.OUT_OF_MEMORY, text="no more")
    campaign.finish(task, Outcome(status=TrialStatus.INFEASIBLE, failure=failure))
    assert before == 100 * MIB
    assert admission.calibration.bound(100 * MIB, "lora") == pytest.approx(105 * MIB)
    measured = store.trials()[0].measurements
    assert measured is not None
    assert measured.foretold_peak is not None
    campaign.close()


def test_what_is_known_before_training(tmp_path: Path) -> None:
    store = store_of("4")
    elsewhere = FakeForecast(lambda one: 40 * needs(one))
    admission = admitting(None, FakeForecast(lambda one: 0.5 * needs(one)), elsewhere=elsewhere)
    candidate = proposal(16).candidate
    known = {"trainable_parameters": 1234.0, "predicted_peak_bytes": 40 * needs(candidate)}
    assert admission.known(candidate) == {"train_peak_bytes": 0.5 * needs(candidate), **known}
    campaign = toy_campaign(store, tmp_path, admission=admission)
    campaign.open()
    drive(campaign, measuring(1e18))
    campaign.close()
    assert admission.known(candidate) == pytest.approx({"train_peak_bytes": needs(candidate), **known})
    assert Admission().known(candidate) == {}


def test_a_candidate_without_the_prediction_that_is_an_objective_is_refused(tmp_path: Path) -> None:
    store = store_of("3")
    elsewhere = FakeForecast(lambda one: None if one.layers() == (1,) else 7.0 * MIB)
    campaign = toy_campaign(store, tmp_path, admission=Admission(FakeForecast, elsewhere=elsewhere))
    campaign.open()
    drive(campaign)
    campaign.close()
    trained = [trial for trial in store.trials() if not trial.refused]
    assert {trial.candidate.layers() for trial in trained} == {(0,)}
    for trial in trained:
        assert trial.measurements is not None
        assert trial.measurements.elsewhere_peak == PeakMemory(live_bytes=7 * MIB, source=MemorySource.PREDICTED)
    refused = [trial for trial in store.trials() if trial.refused]
    assert {trial.failure.reason for trial in refused if trial.failure} == {FailureReason.NOT_PREDICTED}
    assert "no meta kernel" in str(refused[0].failure)


def test_a_sampler_is_told_what_is_foretold_and_it_stays_what_it_was(tmp_path: Path) -> None:
    layout, store = toy_layout(), store_of("4")
    admission = admitting(None, FakeForecast(lambda one: 0.5 * needs(one)), elsewhere=FakeForecast(lambda one: 7.0))
    known, candidate = KnownFromLayout(layout, admission), proposal(16).candidate
    exact = METHODS["lora"].trainable(candidate.insertions[0], layout) + layout.head_parameters
    expected = Known(
        {
            "trainable_parameters": float(exact),
            "train_peak_bytes": 0.5 * needs(candidate),
            "predicted_peak_bytes": 7.0,
        },
        seconds=2.0,
    )
    assert known(candidate) == expected
    campaign = toy_campaign(store, tmp_path, admission=admission)
    campaign.open()
    drive(campaign, measuring(1e18))
    campaign.close()
    assert admission.calibration.expected(100 * MIB) > 150 * MIB  # the forecast was found to say half
    assert known(candidate) == expected


def test_a_sampler_is_told_nothing_of_what_a_pruning_will_decide() -> None:
    pruned = proposal(16).candidate.model_copy(update={"pruning": Pruning(criterion="magnitude", settings={})})
    forecast = FakeForecast()
    assert KnownFromLayout(toy_layout(), admitting(None, forecast))(pruned) == Known(seconds=2.0)
    assert forecast.asked == 0


def test_a_sampler_is_told_of_parameters_where_memory_cannot_be_foretold() -> None:
    known = KnownFromLayout(toy_layout(), Admission(lambda: FakeForecast(lambda one: None)))(proposal(16).candidate)
    assert known is not None
    assert set(known.values) == {"trainable_parameters"}
