"""Early stopping in a search: standings come from the trial table, and a resumed search decides alike."""

import math

import pytest
from typer.testing import CliRunner

from autopeft.cli.main import app
from autopeft.cluster.stopping import EarlyStopping
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory, Rung
from autopeft.domain.spec import SearchSpec
from autopeft.domain.stopping import RULES, Standing
from autopeft.domain.trial import Trial, TrialStatus
from tests.fakes.searches import ToySampler, toy_objectives

SHARES = (1 / 9, 1 / 3, 1.0)


class Noting:
    """Stops everything, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def goes_on(self, trial, others):
        self.asked.append((trial, sorted(others, key=lambda one: one.number)))
        return False

    def behind(self, standings):
        return {}


def rung(step, accuracy, memory=100, train_loss=1.0):
    peak = None if memory is None else PeakMemory(live_bytes=memory, source=MemorySource.TRACKED)
    return Rung(
        step=step,
        planned_steps=9,
        quality={"accuracy": accuracy},
        train_loss=train_loss,
        train_s=1.0,
        train_peak=peak,
    )


def ended(number, status, *rungs):
    measured = Measurements(rungs=rungs, quality=rungs[-1].quality)
    return Trial(
        number=number,
        candidate=ToySampler().ask(number).candidate,
        parameters={},
        seed=0,
        status=status,
        measurements=measured,
    )


def test_the_rule_sees_losses_memory_and_what_is_complete():
    rule = Noting()
    stopping = EarlyStopping(toy_objectives(), SHARES, rule)
    stopping.learn(ended(0, TrialStatus.COMPLETE, rung(1, 0.5), rung(9, 0.9)))
    stopping.learn(ended(1, TrialStatus.STOPPED_EARLY, rung(1, 0.25, 70)))
    stopping.learn(ended(2, TrialStatus.CRASHED, rung(1, 0.75)))
    assert not stopping.goes_on(3, rung(1, 0.5, 80))
    assert not stopping.goes_on(4, rung(1, 0.125))
    assert rule.asked[-1] == (
        Standing(4, 100.0, (-0.125,), train_losses=(1.0,)),
        [
            Standing(0, 100.0, (-0.5, -0.9), complete=True, train_losses=(1.0, 1.0)),
            Standing(1, 70.0, (-0.25,), train_losses=(1.0,), stopped=True),
            Standing(3, 80.0, (-0.5,), train_losses=(1.0,)),
        ],
    )
    stopping.goes_on(3, rung(3, 0.625, 80, train_loss=math.nan))
    assert rule.asked[-1][0] == Standing(3, 80.0, (-0.5, -0.625)), "a loss that is not finite is left out"


def test_the_rule_sees_what_was_proposed_of_running_trials_too():
    rule = Noting()
    stopping = EarlyStopping(toy_objectives(), SHARES, rule)
    done = ended(0, TrialStatus.COMPLETE, rung(1, 0.5), rung(9, 0.9)).model_copy(update={"parameters": {"rank": 8}})
    begun = done.model_copy(
        update={"number": 1, "status": TrialStatus.RUNNING, "measurements": None, "parameters": {"rank": 2}}
    )
    stopping.learn(done)
    stopping.learn(begun)
    stopping.goes_on(1, rung(1, 0.5))
    trial, others = rule.asked[-1]
    assert (trial.parameters, [one.parameters for one in others]) == ({"rank": 2}, [{"rank": 8}])


def test_what_cannot_be_judged_and_what_is_at_its_end_goes_on():
    stopping = EarlyStopping(toy_objectives(), SHARES, Noting())
    assert stopping.goes_on(0, rung(1, 0.5, memory=None))
    assert stopping.goes_on(1, rung(1, float("nan")))
    assert stopping.goes_on(2, rung(9, 0.5))
    assert stopping.goes_on(3, rung(3, 0.5)), "taken up behind a rung of which nothing was heard"
    assert EarlyStopping(toy_objectives("train_peak_bytes"), SHARES, Noting()).goes_on(0, rung(1, 0.5))


def test_a_new_attempt_begins_anew():
    rule = Noting()
    stopping = EarlyStopping(toy_objectives(), SHARES, rule)
    stopping.goes_on(0, rung(1, 0.5))
    stopping.goes_on(0, rung(3, 0.625))
    stopping.goes_on(0, rung(1, 0.25))
    assert rule.asked[-1][0].losses == (-0.25,)


def test_a_search_that_goes_on_decides_as_an_undisturbed_one():
    first, again = Noting(), Noting()
    undisturbed, resumed = (EarlyStopping(toy_objectives(), SHARES, rule) for rule in (first, again))
    trials = [ended(number, TrialStatus.COMPLETE, rung(1, 0.1 * number), rung(9, 0.1)) for number in range(4)]
    for trial in trials:
        for one in trial.measurements.rungs:
            undisturbed.goes_on(trial.number, one)
        undisturbed.learn(trial)
        resumed.learn(trial)
    undisturbed.goes_on(9, rung(1, 0.3))
    resumed.goes_on(9, rung(1, 0.3))
    assert first.asked[-1] == again.asked[-1]


def test_a_search_that_stops_early_has_three_rungs_and_another_digest():
    plain, early = SearchSpec(), SearchSpec(early_stopping=True)
    assert early.training.rungs == pytest.approx((1 / 9, 1 / 3, 1.0))
    assert plain.training.rungs == (0.5, 1.0)
    assert early.digest != plain.digest
    own = SearchSpec.model_validate({"early_stopping": True, "training": {"epochs": 1, "rungs": [0.25, 1.0]}})
    assert own.training.rungs == (0.25, 1.0)
    assert SearchSpec.model_validate(early.model_dump(mode="json")) == early


def test_a_sample_for_validation_is_another_search_and_none_is_the_same():
    assert SearchSpec().digest == SearchSpec(data={"source": "python-docs", "max_validation_rows": None}).digest
    assert SearchSpec().digest != SearchSpec(data={"source": "python-docs", "max_validation_rows": 9}).digest


def test_a_rule_has_a_name_and_true_is_the_front_rule():
    assert SearchSpec(early_stopping=True) == SearchSpec(early_stopping="front")
    assert SearchSpec(early_stopping=False) == SearchSpec()
    other = SearchSpec(early_stopping="mo-asha")
    assert other.training.rungs == pytest.approx(SHARES)
    assert len({SearchSpec().digest, SearchSpec(early_stopping="front").digest, other.digest}) == 3
    # The digest of a run that was begun when the key was a switch, and TPE what was taken where nothing was said.
    assert SearchSpec(early_stopping=True, sampler="tpe").digest == "b044dc06852ef48b"
    for name in RULES:
        assert SearchSpec(early_stopping=name).early_stopping == name
    with pytest.raises(ValueError, match="mo-asha"):
        SearchSpec(early_stopping="asha")


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (["--early-stopping"], "front"),
        (["--early-stopping", "mo-asha"], "mo-asha"),
        (["--early-stopping", "--seed", "3"], "front"),
        (["--early-stopping", "FILE"], "front"),
        ([], None),
    ],
)
def test_the_flag_without_a_value_is_the_front_rule(monkeypatch, tmp_path, given, rule):
    spec = tmp_path / "spec.yaml"
    spec.write_text("space: lora")
    asked = []
    monkeypatch.setattr("autopeft.app.searching.search", lambda spec, *_, **__: asked.append(spec) or 1 / 0)
    CliRunner().invoke(app, ["search", *[str(spec) if one == "FILE" else one for one in given]])
    assert [one.early_stopping for one in asked] == [rule]


class Wanting(Noting):
    """Stops everything; every stopped trial is as far from being wanted as its loss is above -0.5."""

    def behind(self, standings):
        return {one.number: one.losses[-1] + 0.5 for one in standings if one.stopped}


def test_the_most_wanted_of_the_highest_rung_with_a_checkpoint_is_taken_up():
    stopping = EarlyStopping(toy_objectives(), SHARES, Wanting())
    for number, accuracy in enumerate((0.25, 0.5, 0.75)):
        stopping.learn(ended(number, TrialStatus.STOPPED_EARLY, rung(1, accuracy)))
    stopping.learn(ended(3, TrialStatus.STOPPED_EARLY, rung(1, 0.5), rung(3, 0.625)))
    assert stopping.wanted({0, 1, 2, 3}) == 3
    assert stopping.wanted({0, 1, 2}) == 2
    assert stopping.wanted({0, 1}) == 1
    assert stopping.wanted({0}) is None
    assert stopping.least_wanted({0, 1, 2, 3}, 4) == []
    assert stopping.least_wanted({0, 1, 2, 3}, 2) == [1, 0], "the highest rung and the nearest stay"


def test_what_was_taken_up_is_judged_with_the_rungs_that_it_had_and_a_resumed_search_knows_them():
    for begun in (True, False):
        rule = Noting()
        stopping = EarlyStopping(toy_objectives(), SHARES, rule)
        one = ended(0, TrialStatus.STOPPED_EARLY, rung(1, 0.25))
        if begun:
            stopping.learn(one)
        # As the table has it after the search was killed over it, too.
        stopping.learn(one.model_copy(update={"status": TrialStatus.PENDING}))
        assert stopping.wanted({0}) is None
        assert not stopping.goes_on(0, rung(3, 0.5))
        assert rule.asked[-1][0] == Standing(0, 100.0, (-0.25, -0.5), train_losses=(1.0, 1.0))
        assert [one.step for one in stopping.stopped(0).rungs] == [1, 3]
