"""Replays on a made-up table: the clock, the hypervolume, determinism, and stopping."""

import heapq
import math
from itertools import combinations

import numpy as np
import pytest

from autopeft.domain import pareto
from autopeft.domain.replayed import Contest, Moment, Replay, bootstrap
from autopeft.domain.stopping import RULES, Halving, Standing
from autopeft.domain.trial import TrialStatus
from autopeft.search.replay import Truth, clock, replay
from autopeft.search.replay.table_space import TableSpace
from autopeft.search.stopping import rule_of
from tests.fakes.recorded import BATCH, SHARES, made_up_table

SMALL = Truth(made_up_table(24))


class InOrder:
    """Proposes the configurations in a given order and notes what it is told."""

    def __init__(self, truth, order):
        self.truth, self.order, self.told = truth, list(order), []

    def ask(self, number):
        if number >= len(self.order):
            return None
        one = self.truth.table.trainings[self.order[number]][0]
        return clock.Proposal(dict(one.parameters), one.candidate, {})

    def tell(self, scored):
        self.told.append(scored)

    def replay(self, history):
        raise AssertionError


def replayed(monkeypatch, truth, order, **how):
    sampler = InOrder(truth, order)
    monkeypatch.setattr(clock, "make_sampler", lambda *args, **kwargs: sampler)
    return replay(truth, "made-up", 0, **how), sampler


@pytest.mark.parametrize("workers", [1, 3, 100])
def test_the_clock_is_that_of_a_list_schedule(monkeypatch, workers):
    """Each free worker takes the next training: the ends are those of the textbook's greedy list schedule."""
    order = list(np.random.default_rng(1).permutation(24))
    found, _ = replayed(monkeypatch, SMALL, order, workers=workers)
    free, ends = [0.0] * workers, []
    for config in order:
        end = heapq.heappop(free) + SMALL.seconds(config, None)
        ends.append(end)
        heapq.heappush(free, end)
    assert [moment.seconds for moment in found.moments] == pytest.approx(sorted(ends))
    assert [moment.trials for moment in found.moments] == list(range(1, 25))
    assert found.moments[-1].samples == 24 * 90 * BATCH


def test_the_share_is_the_hypervolume_of_the_mean_over_seeds():
    """Against inclusion and exclusion over all subsets of boxes, in the box of the table's own extremes."""
    points = {
        config: (
            -float(np.mean([one.rungs[-1].quality["accuracy"] for one in trainings])),
            math.log(trainings[0].train_peak_bytes),
        )
        for config, trainings in SMALL.table.trainings.items()
    }
    array = np.array(list(points.values()))
    low, high = array.min(axis=0), array.max(axis=0)

    def volume(configs):
        boxes = [1 - (np.array(points[config]) - low) / (high - low) for config in configs]
        return sum(
            (-1) ** (size + 1) * sum(float(np.prod(np.min(some, axis=0))) for some in combinations(boxes, size))
            for size in range(1, len(boxes) + 1)
        )

    front = [config for config, kept in zip(points, pareto.non_dominated(array), strict=True) if kept]
    assert SMALL.share({0, 3, 7, 11}) == pytest.approx(volume([0, 3, 7, 11]) / volume(front))
    assert SMALL.share(set(points)) == pytest.approx(1.0)
    assert SMALL.share(set()) == 0.0


def test_one_who_knows_the_truth_has_everything_after_as_many_trials_as_the_front_has_points(monkeypatch):
    array = np.array([SMALL._points[config] for config in SMALL.configs])
    front = [config for config, kept in zip(SMALL.configs, pareto.non_dominated(array), strict=True) if kept]
    others = [config for config in SMALL.configs if config not in front]
    found, _ = replayed(monkeypatch, SMALL, [*front, *others], until=1 - 1e-9)
    assert len(found.moments) == len(front)
    assert found.first(0.99).seconds <= sum(SMALL.seconds(config, None) for config in front)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("front", marks=pytest.mark.slow),
        pytest.param("front-blind", marks=pytest.mark.slow),
        "tpe",
        "random",
        "evolution",
        "nsga2",
    ],
)
def test_a_replay_is_the_same_every_time_and_visits_each_configuration_once(name):
    truth = Truth(made_up_table(10, lost=(2, 5)))
    one, same = (replay(truth, name, 3, workers=2, rule=rule_of("front", SHARES)) for _ in range(2))
    assert one.moments == same.moments
    assert one.asked == 10
    assert one.moments[-1].trials == 10
    assert one.moments != replay(truth, name, 4, workers=2, rule=rule_of("front", SHARES)).moments


def test_a_search_sees_one_seed_and_what_runs_and_what_failed(monkeypatch):
    truth = Truth(made_up_table(6, lost=(1,)))
    _, sampler = replayed(monkeypatch, truth, [1, 0])
    statuses = [(one.trial.number, one.trial.status) for one in sampler.told]
    assert statuses == [
        (0, TrialStatus.RUNNING),
        (0, TrialStatus.INFEASIBLE),
        (1, TrialStatus.RUNNING),
        (1, TrialStatus.COMPLETE),
    ]
    shown = truth.shown(0, 0)
    assert sampler.told[-1].values == (shown.rungs[-1].quality["accuracy"], shown.train_peak_bytes)
    assert sampler.told[1].values is None
    assert truth.share({1}) == 0.0, "what failed has no quality"


def test_a_proposal_stands_for_the_nearest_configuration_that_is_free():
    space = TableSpace(SMALL.table)
    own = space.settings(5)
    moved = own | {"learning_rate": own["learning_rate"] * 1.0001}
    assert space.resolve(moved) == SMALL.table.trainings[5][0].candidate
    assert space.take(space.resolve(moved)) == 5
    assert space.resolve(moved) != SMALL.table.trainings[5][0].candidate
    assert space.resolve(own) == SMALL.table.trainings[5][0].candidate, "a told trial stays what it is"
    while (candidate := space.resolve(moved)) is not None:
        space.take(candidate)
    assert not space.free.any()


class Never:
    def goes_on(self, trial, others):
        return trial.number != 1

    def behind(self, standings):
        return {}


def test_a_stopped_trial_costs_what_it_did_and_is_no_part_of_the_front(monkeypatch):
    found, sampler = replayed(monkeypatch, SMALL, [0, 1, 2], rule=Never())
    times = SMALL.seconds(0, None), SMALL.seconds(1, 0), SMALL.seconds(2, None)
    assert [moment.seconds for moment in found.moments] == pytest.approx(np.cumsum(times))
    assert [moment.samples for moment in found.moments] == [90 * BATCH, 100 * BATCH, 190 * BATCH]
    assert [moment.share for moment in found.moments] == [SMALL.share({0}), SMALL.share({0}), SMALL.share({0, 2})]
    assert found.stopped == 1
    assert [one.values for one in sampler.told if one.trial.status is TrialStatus.STOPPED_EARLY] == [None]


def complete(number, memory, *losses):
    return Standing(number, memory, losses, complete=True)


@pytest.mark.parametrize("rule", [rule_of(name, SHARES) for name in RULES])
def test_rules_do_not_depend_on_the_scale_of_memory_or_the_order_of_trials(rule):
    rng = np.random.default_rng(0)
    for _ in range(50):
        field = [complete(number, rng.random(), *rng.random(2)) for number in range(9)]
        trial = Standing(9, *rng.random(1), (rng.random(),))

        def scaled(one):
            return Standing(one.number, 7.0 * one.memory, one.losses, one.complete)

        said = rule.goes_on(trial, field)
        assert rule.goes_on(scaled(trial), [scaled(one) for one in field]) == said
        assert rule.goes_on(trial, field[::-1]) == said


def test_halving_keeps_the_first_fronts_and_spreads_in_the_last():
    corner, edge, middle = (complete(number, m, loss) for number, (m, loss) in enumerate([(0, 1), (1, 0), (0.5, 0.5)]))
    worse = [complete(10 + number, 2.0, 2.0) for number in range(3)]
    # Six compared, two go on: the best in the first objective, then the furthest from it.
    assert Halving(3).goes_on(edge, [corner, middle, *worse])
    assert Halving(3).goes_on(corner, [edge, middle, *worse])
    assert not Halving(3).goes_on(middle, [corner, edge, *worse])


def test_a_contest_tells_medians_and_what_was_not_reached():
    def one(seed, *shares):
        moments = tuple(Moment(float(at), at, 10 * at, share) for at, share in enumerate(shares, start=1))
        return Replay(seed, moments, 1, 4, 2.0)

    found = Contest("t", 9, 1, {"a": (one(0, 0.5, 0.96), one(1, 0.91, 0.95), one(2, 0.2, 0.3))})
    assert found.seconds_to("a", 0.90).value == 2.0
    assert found.seconds_to("a", 0.99).value == math.inf
    assert found.samples_to("a", 0.95) == 20
    assert found.sampler_s("a") == 0.5
    assert [band.value for band in found.curve("a", (0.5, 1.0, 9.0))] == pytest.approx([0, 1.61 / 3, 2.21 / 3])


def test_the_bootstrap_band_of_a_mean_is_as_wide_as_its_standard_error_says():
    values = np.random.default_rng(2).normal(size=400)
    band = bootstrap(list(values), np.mean)
    assert band.value == pytest.approx(values.mean())
    assert band.high - band.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
