"""What is predicted not to fit never trains, costs nothing, and is learned from."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.cluster.admission import Admission, Limits
from autopeft.cluster.campaign import Done, Refused
from autopeft.cluster.verdict import MOST_REFUSED
from autopeft.domain.candidate import Candidate
from autopeft.domain.events import Event, Notice, TrialEnded, TrialRefused, TrialStarted
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.memory import Prediction
from autopeft.domain.ports import EvaluationTask, Proposal
from autopeft.domain.trial import Failure, FailureReason, Outcome, TrialStatus
from autopeft.search import make_sampler
from tests.fakes.campaigns import begun, drive, store_of
from tests.fakes.evaluators import known_measurements
from tests.fakes.handmade import handmade_space
from tests.fakes.searches import ToySampler, toy_campaign, toy_objectives
from tests.fakes.stores import MemoryRunStore

MIB = 2**20


def needs(candidate: Candidate) -> float:
    """Bytes that training a candidate takes, in this file's world."""
    return 50 * MIB + sum(
        int(one.settings.get("rank", 1)) * len(one.layers) * MIB * (1.5 if one.method == "dora" else 1.0)
        for one in candidate.insertions
    )


def prediction(live: float, reserved: float | None = None) -> Prediction:
    """A prediction of so many bytes; what it consists of is of no concern here."""
    parts = {name: 0 for name, field in Prediction.model_fields.items() if field.is_required()}
    said = {"train_peak_bytes": round(live), "trainable_parameters": 1234, "where": "optimiser step"}
    if reserved is not None:
        said["train_peak_reserved_bytes"] = round(reserved)
    return Prediction.model_validate({**parts, **said})


class FakeForecast:
    """Says what `said` says; None is no prediction."""

    def __init__(self, said: Callable[[Candidate], float | None] = needs, reserved: float | None = None) -> None:
        self.said = said
        self.reserved = reserved
        self.asked = 0

    def predict(self, candidate: Candidate) -> Prediction | None:
        self.asked += 1
        found = self.said(candidate)
        return None if found is None else prediction(found, None if self.reserved is None else found * self.reserved)

    def why_not(self, candidate: Candidate) -> str:
        return "" if self.said(candidate) is not None else "RuntimeError: no meta kernel"

    def estimation(self, candidate: Candidate) -> Prediction | None:
        return None


def measuring(limit: float, truth: Callable[[Candidate], float] = needs) -> Callable[[EvaluationTask], Outcome]:
    """An evaluation that ends at its first step where it needs more than the limit, as the real one does."""

    def outcome_of(task: EvaluationTask) -> Outcome:
        bytes_ = truth(task.candidate)
        peak = PeakMemory(live_bytes=round(bytes_), source=MemorySource.TRACKED)
        if bytes_ > limit:
            measured = Measurements(train_peak=peak, steps=2, planned_steps=10)
            failure = Failure(reason=FailureReason.OVER_LIMIT, text="too much", violation=bytes_ / limit - 1)
            return Outcome(status=TrialStatus.INFEASIBLE, failure=failure, measurements=measured, seconds=1.0)
        measured = known_measurements(task).model_copy(update={"train_peak": peak})
        return Outcome(status=TrialStatus.COMPLETE, measurements=measured, seconds=1.0)

    return outcome_of


def admitting(limit: float | None, forecast: FakeForecast | None = None, **more: object) -> Admission:
    chosen = forecast or FakeForecast()
    return Admission(lambda: chosen, limits=Limits(live_bytes=None if limit is None else round(limit)), **more)  # type: ignore[arg-type]


def quarter() -> float:
    """The bytes that a quarter of random candidates of the handmade space exceed."""
    sampler = make_sampler("random", handmade_space(), toy_objectives(), 99)
    found = sorted(needs(one.candidate) for number in range(400) if (one := sampler.ask(number)) is not None)
    limit = found[int(0.75 * len(found))]
    assert 0.2 < sum(one > limit for one in found) / len(found) <= 0.25
    return limit


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sampler", ["random", "tpe"])
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
    from tests.fakes.searches import ToySpace

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


def test_notices_are_events() -> None:
    seen = list[Event]()
    admission = Admission(lambda: FakeForecast(lambda one: None), say=lambda text: seen.append(Notice(text)))
    admission.refusal(proposal(4).candidate)
    assert isinstance(seen[0], Notice)
