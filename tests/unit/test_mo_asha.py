"""MO-ASHA promotes what the paper's formulae say: a slow reference written from them, with none of our code."""

import math

import numpy as np
import pytest

from autopeft.domain.stopping import Halving, Standing, most_wanted
from autopeft.domain.trial import TrialStatus
from tests.fakes.recorded import BATCH, STEPS
from tests.unit.test_bench_replay import SMALL, replayed

ETA, RUNGS = 3, 3


def dominates(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def net_order(points):
    """Farthest first: the best in the first objective, then whoever's nearest chosen one is furthest away."""
    names = list(points)
    chosen = [min(names, key=lambda name: (*points[name], name))]
    while len(chosen) < len(names):
        rest = [name for name in names if name not in chosen]
        chosen.append(max(rest, key=lambda name: (min(math.dist(points[name], points[one]) for one in chosen), -name)))
    return chosen


def mo_top_k(points, k):
    """Whole fronts while they fit, the last of them cut by the epsilon-net."""
    spans = [max(column) - min(column) or 1.0 for column in zip(*points.values(), strict=True)]
    left = {name: tuple(value / span for value, span in zip(one, spans, strict=True)) for name, one in points.items()}
    taken = []
    while left and len(taken) < k:
        front = {name: one for name, one in left.items() if not any(dominates(other, one) for other in left.values())}
        taken += net_order(front)
        left = {name: one for name, one in left.items() if name not in front}
    return taken[:k]


@pytest.mark.parametrize("seed", range(5))
def test_a_rung_promotes_its_best_third_by_fronts_and_epsilon_net(seed):
    rng = np.random.default_rng(seed)
    for count in (1, 2, 3, 7, 20, 40):
        points = {number: tuple(rng.random(2)) for number in range(count)}
        best = set(mo_top_k(points, count // ETA))
        standings = [Standing(number, memory, (loss,)) for number, (loss, memory) in points.items()]
        for trial in standings:
            others = [one for one in standings if one is not trial]
            assert Halving(ETA).goes_on(trial, others) == (trial.number in best)
        stopped = [Standing(one.number, one.memory, one.losses, stopped=True) for one in standings]
        behind = Halving(ETA).behind(stopped)
        assert {number for number, away in behind.items() if away <= 0} == best
        assert len(behind) == count


def by_the_paper(losses, memory):
    """Algorithm 1 with one worker: which trials are in which rung whenever it asks for a new candidate."""
    rungs, promoted, states = [[] for _ in range(RUNGS)], set(), []
    for new in range(len(losses)):
        states.append([set(rung) for rung in rungs])
        job = (new, 0)
        while job is not None:
            number, level = job
            rungs[level].append(number)
            job = None
            for k in reversed(range(RUNGS - 1)):
                points = {one: (losses[one][k], memory[one]) for one in rungs[k]}
                best = (
                    [one for one in mo_top_k(points, len(points) // ETA) if (one, k) not in promoted] if points else []
                )
                if best:
                    # The paper does not say which of several; the one in hand needs no loading.
                    chosen = number if number in best and k == level else min(best)
                    promoted.add((chosen, k))
                    job = (chosen, k + 1)
                    break
    return states


def by_our_rule(losses, memory):
    rule, standings, states = Halving(ETA), {}, []

    def train(number, level):
        while True:
            own = Standing(number, memory[number], tuple(losses[number][: level + 1]), complete=level == RUNGS - 1)
            standings[number] = own
            if own.complete:
                return
            if not rule.goes_on(own, [one for one in standings.values() if one.number != number]):
                standings[number] = Standing(number, own.memory, own.losses, stopped=True)
                return
            level += 1

    for new in range(len(losses)):
        states.append([{n for n, one in standings.items() if len(one.losses) > k} for k in range(RUNGS)])
        train(new, 0)
        while (number := most_wanted(rule, list(standings.values()))) is not None:
            train(number, len(standings[number].losses))
    return states


@pytest.mark.parametrize("seed", range(6))
def test_a_whole_search_promotes_as_the_papers_algorithm_does(seed):
    rng = np.random.default_rng(seed)
    losses, memory = rng.random((40, RUNGS)), rng.random(40)
    ours, reference = by_our_rule(losses, memory), by_the_paper(losses, memory)
    assert ours == reference
    assert len(ours[-1][0]) == 39
    assert 39 // ETA <= len(ours[-1][1]) < 39, "rungs shrink by about eta"


def test_a_replayed_promotion_costs_only_what_was_left_of_its_training(monkeypatch):
    order = list(np.random.default_rng(2).permutation(24))
    found, sampler = replayed(monkeypatch, SMALL, order, rule=Halving(ETA))
    ended = {one.trial.number: one.trial for one in sampler.told if one.trial.status.ended}
    reached = [len(ended[number].measurements.rungs) for number in range(24)]
    again = sum(one.trial.status is TrialStatus.RUNNING for one in sampler.told) - 24
    assert again > 0, "some were promoted after they had been stopped"
    assert len(found.moments) == 24 + again
    # One worker is never idle, so its time and its samples are those of all steps done, each done once.
    seconds = sum(SMALL.seconds(order[number], rungs - 1) for number, rungs in enumerate(reached))
    assert found.moments[-1].seconds == pytest.approx(seconds)
    assert found.moments[-1].samples == sum(STEPS[rungs - 1] * BATCH for rungs in reached)
    assert found.stopped == sum(rungs < RUNGS for rungs in reached)
    assert [moment.seconds for moment in found.moments] == sorted(moment.seconds for moment in found.moments)
    assert [moment.samples for moment in found.moments] == sorted(moment.samples for moment in found.moments)
