"""A search begins with the points it was given: in their order, within their share, and found again on resume."""

import itertools

import numpy as np
import pytest

from autopeft.domain.results import ScoredTrial
from autopeft.domain.start import Start, StartingPoint, merged, most_of, order
from autopeft.domain.trial import Failure, FailureReason, TrialStatus
from autopeft.search import SAMPLERS, make_sampler
from tests.contract import sampler_contract
from tests.contract.sampler_contract import OBJECTIVES, SamplerContract, grid_180, stored

NAMES = [name for name in SAMPLERS if name != "gp"]


def point(a, b, origin="first guess"):
    values = {"a": a, "b": b, "c": True, "d": 2}
    return StartingPoint(parameters=values, candidate=grid_180().resolve(values), origin=origin)


START = Start(
    points=(
        point("t", 8, "start-with"),
        point("p", 1, "warm start of old"),
        point("q", 2, "warm start of old"),
        point("s", 4),
        point("r", 1),
    ),
    most=3,
)


def told(number, proposal, status=TrialStatus.COMPLETE):
    """The trial of a proposal that was started."""
    one = sampler_contract.told(number, proposal, status)
    return ScoredTrial(one.trial.model_copy(update={"attempt": 1}), one.values)


def sampler(name="random", start=START, seed=0):
    return make_sampler(name, grid_180(), OBJECTIVES, seed, start=start)


def run(made, count, first=0, status=TrialStatus.COMPLETE):
    history = []
    for number in range(first, first + count):
        history.append(told(number, made.ask(number), status))
        made.tell(history[-1])
    return history


@pytest.mark.parametrize("name", NAMES)
class TestAStart:
    def test_its_points_come_first_in_their_order_and_the_share_is_kept(self, name):
        history = run(sampler(name), 8)
        found = [(one.trial.digest, one.trial.origin) for one in history]
        assert found[:4] == [(one.candidate.digest, one.origin) for one in START.points[:4]]
        assert [origin for _, origin in found[4:]] == ["sampler"] * 4
        assert len({digest for digest, _ in found}) == 8

    @pytest.mark.parametrize("killed", range(1, 7))
    def test_after_a_kill_the_next_proposals_are_those_of_the_undisturbed_search(self, name, killed):
        endings = itertools.cycle([TrialStatus.COMPLETE, TrialStatus.INFEASIBLE, TrialStatus.COMPLETE])
        live, history = sampler(name), []
        for number, status in zip(range(killed), endings, strict=False):
            history.append(told(number, live.ask(number), status))
            live.tell(history[-1])
        again = sampler(name)
        again.replay([stored(one) for one in history])
        upcoming = [
            [(one.trial.parameters, one.trial.sampler_state) for one in run(made, 5, killed)] for made in (live, again)
        ]
        assert upcoming[0] == upcoming[1]

    def test_running_trials_hold_their_points(self, name):
        live, again = sampler(name), sampler(name)
        running = [told(number, live.ask(number), TrialStatus.RUNNING) for number in range(3)]
        assert [one.trial.origin for one in running] == ["start-with", "warm start of old", "warm start of old"]
        again.replay([stored(one) for one in running])
        assert again.ask(3) == live.ask(3)


class TestStartedRandom(SamplerContract):
    """A sampler with a start keeps the contract."""

    name = "random"

    def sampler(self, space, seed=0, startup=None):
        names = {parameter.name for parameter in space.parameters}
        return make_sampler(self.name, space, OBJECTIVES, seed, start=START if names == {"a", "b", "c", "d"} else None)

    # Its first proposals do not depend on the seed, and are of this very space.
    test_trials_of_a_space_that_was_changed_since_are_refused = None


class TestStartedNsga2(TestStartedRandom):
    name = "nsga2"


def test_a_point_that_was_refused_for_its_memory_leaves_its_place_to_the_next():
    made = sampler()
    run(made, 1)
    one = told(1, made.ask(1), TrialStatus.INFEASIBLE)
    failure = Failure(reason=FailureReason.PREDICTED_OVER_LIMIT, text="Too large.")
    refused = one.trial.model_copy(update={"failure": failure, "attempt": 0})
    assert refused.refused
    made.tell(ScoredTrial(refused, None))
    origins = [one.trial.origin for one in run(made, 5, first=2)]
    assert origins == ["warm start of old", "first guess", "first guess", "sampler", "sampler"]


def test_a_question_that_was_never_answered_is_asked_anew():
    made = sampler()
    run(made, 1)
    assert made.ask(1) == made.ask(1)
    with pytest.raises(ValueError, match="trial 0 was told already"):
        made.ask(0)


@pytest.mark.parametrize(("budget", "most"), [(1, 0), (2, 0), (3, 1), (12, 4), (64, 21), (None, 6)])
def test_guesses_and_fronts_take_a_third_of_the_budget_at_most(budget, most):
    assert most_of(budget) == most
    trained = [one.trial.origin for one in run(sampler(start=START.model_copy(update={"most": most})), 6)]
    assert sum(origin not in ("sampler", "start-with") for origin in trained) == min(most, 4)
    assert trained[0] == "start-with"


def test_a_whole_space_is_gone_through_with_a_start_too():
    made = sampler("random")
    assert len({one.trial.digest for one in run(made, 180)}) == 180
    assert made.ask(180) is None


def test_points_come_once():
    first, second = point("p", 1, "start-with"), point("p", 1)
    assert merged([[first], [second, point("q", 1)]]) == (first, point("q", 1))


def test_the_beginning_of_a_front_stands_for_all_of_it():
    # Ten points on a line: the middle first, then what is left on both sides.
    line = np.array([(x, 9.0 - x) for x in range(10)])
    found = order(line)
    assert sorted(found) == list(range(10))
    assert found[0] in (4, 5)
    assert min(found[1:3]) < 4 < 5 < max(found[1:3])
    assert order(np.empty((0, 2))) == []
    assert order(np.array([[1.0, 1.0]])) == [0]
    assert order(line * [1e9, 1e-3]) == found
