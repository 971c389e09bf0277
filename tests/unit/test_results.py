"""Scoring, fronts and picking points do what their words say."""

import math

import pytest

from autopeft import plugins
from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import UserError
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.results import Front, score
from autopeft.domain.trial import Trial, TrialStatus

MIB = 2**20


@pytest.fixture(scope="module")
def objectives():
    return tuple(plugins.load(plugins.OBJECTIVES, name, "objectives") for name in ("accuracy", "train_peak_bytes"))


def trial(number, accuracy, mebibytes, status=TrialStatus.COMPLETE):
    return Trial(
        number=number,
        candidate=Candidate(insertions=(), learning_rate=1e-3 * (number + 1)),
        parameters={"learning_rate": 1e-3 * (number + 1)},
        seed=0,
        status=status,
        measurements=Measurements(
            quality={"accuracy": accuracy},
            train_peak=None
            if mebibytes is None
            else PeakMemory(live_bytes=mebibytes * MIB, source=MemorySource.TRACKED),
        ),
    )


def front_of(objectives, *rows):
    return Front.of(objectives, [score(trial(number, *row), objectives) for number, row in enumerate(rows)])


@pytest.mark.parametrize("status", [one for one in TrialStatus if one is not TrialStatus.COMPLETE])
def test_only_complete_trials_have_values(objectives, status):
    assert score(trial(0, 0.9, 100, status), objectives).values is None


@pytest.mark.parametrize(("accuracy", "mebibytes"), [(math.nan, 100), (math.inf, 100), (0.9, None)])
def test_a_trial_that_lacks_a_finite_number_has_no_values(objectives, accuracy, mebibytes):
    one = score(trial(0, accuracy, mebibytes), objectives)
    assert one.values is None
    assert Front.of(objectives, [one]).members == ()


def test_the_front_holds_the_non_dominated_trials_and_one_of_equals(objectives):
    front = front_of(objectives, (0.8, 200), (0.7, 100), (0.7, 150), (0.8, 200), (0.9, 400), (0.6, 100))
    assert [one.trial.number for one in front.members] == [1, 0, 4]


def test_the_named_picks(objectives):
    front = front_of(objectives, (0.5, 100), (0.85, 150), (0.9, 400))
    assert front.pick("smallest").trial.number == 0
    assert front.pick("most-accurate").trial.number == 2
    assert front.pick("knee").trial.number == 1
    assert front.pick("1").trial.number == 1


def test_the_named_picks_do_not_depend_on_the_order_of_the_objectives(objectives):
    front = front_of(objectives[::-1], (0.5, 100), (0.85, 150), (0.9, 400))
    assert front.pick("smallest").trial.number == 0
    assert front.pick("most-accurate").trial.number == 2
    assert front.pick("knee").trial.number == 1


def test_a_limit_leaves_the_best_that_keeps_it(objectives):
    front = front_of(objectives, (0.5, 100), (0.85, 150), (0.9, 400))
    assert front.pick("train_peak_bytes<=200MiB").trial.number == 1
    assert front.pick("train_peak_bytes <= 1GiB").trial.number == 2
    assert front.pick("accuracy>=0.8").trial.number == 1
    assert front.pick("accuracy>=0.6,train_peak_bytes<=150MiB").trial.number == 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("kneee", "cannot be read"),
        ("memory<=2GiB", "nothing is called 'memory'"),
        ("train_peak_bytes<=lots", "2GiB"),
        ("train_peak_bytes<=1MiB", "no point of the front keeps"),
        ("7", "not on the front"),
    ],
)
def test_a_pick_that_cannot_be_made_says_why(objectives, what, message):
    with pytest.raises(UserError, match=message):
        front_of(objectives, (0.5, 100)).pick(what)


def test_an_empty_front_cannot_be_picked_from(objectives):
    with pytest.raises(UserError, match="no trial completed"):
        front_of(objectives).pick("knee")
