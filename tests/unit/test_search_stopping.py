"""Early stopping by what is still to be gained: predictions, rates and decisions against slow references."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from autopeft.domain.stopping import Standing, most_wanted
from autopeft.search.front.surrogate import fit
from autopeft.search.front.views import SpaceView
from autopeft.search.stopping import GainStopping, rate
from tests.contract.sampler_contract import OBJECTIVES, ToySpace, choice

SHARES = (1 / 9, 1 / 3, 1.0)


def trials(count: int, seed: int = 0, told: float = 0.01, memory: float | None = None) -> list[Standing]:
    """Complete trials whose final loss is that of their rungs to within `told`."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        end = rng.random()
        rungs = [end + told * rng.standard_normal() for _ in SHARES[:-1]]
        needs = memory or float(rng.uniform(50, 500))
        made.append(Standing(number, needs, (*rungs, end), True, tuple(2 * one for one in (*rungs, end))))
    return made


def asked(loss: float, memory: float, number: int = 99) -> Standing:
    return Standing(number, memory, (loss,), False, (2 * loss,))


def test_rate_is_the_best_over_all_choices_of_who_goes_on() -> None:
    gains = np.random.default_rng(1).random(9) ** 4
    best = 0.0
    for many in range(1, 10):
        for going in combinations(gains, many):
            best = max(best, sum(going) / (9 * 0.2 + many * 0.8))
    assert rate(list(gains), 0.2) == pytest.approx(best, rel=1e-12)


def test_going_on_at_the_best_threshold_gains_at_the_rate() -> None:
    gains = np.random.default_rng(2).random(30) ** 3
    found = rate(list(gains), 0.25)
    # Renewal-reward: the surplus over the rate's cost pays for all first parts (Weitzman's condition).
    assert sum(max(0.0, gain - found * 0.75) for gain in gains) == pytest.approx(30 * 0.25 * found, rel=1e-9)


def test_ends_are_predicted_as_a_surrogate_over_the_losses_at_the_rung_does() -> None:
    complete = trials(12, told=0.2)
    mean, sd = GainStopping(SHARES).predicted_ends([asked(0.3, 10.0)], complete, 0)
    seen = np.array([[one.losses[0], one.train_losses[0]] for one in complete])
    ends = np.array([one.losses[-1] for one in complete])
    middle, range_ = seen.mean(axis=0), 4 * seen.std(axis=0)
    posterior = fit((seen - middle) / range_, ends, np.array([0, 1]))
    expected = posterior.predict((np.array([[0.3, 0.6]]) - middle) / range_)
    assert (mean[0], sd[0]) == pytest.approx((expected[0][0], expected[1][0]), rel=1e-6)


def kinds(count: int, seed: int = 0) -> list[Standing]:
    """Complete trials of two kinds, one of which is behind at every rung and ahead at the end."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        slow, luck = number % 2 == 1, 0.05 * rng.standard_normal(3)
        losses = (0.8, 0.6, 0.2) if slow else (0.5, 0.45, 0.4)
        seen = tuple(float(one) for one in np.array(losses) + luck)
        made.append(Standing(number, 100.0, seen, True, parameters={"kind": "slow" if slow else "fast", "size": 1}))
    return made


def test_a_kind_that_begins_slowly_and_ends_well_goes_on_where_candidates_are_described() -> None:
    space = ToySpace(choice("kind", "fast", "slow"), choice("size", 1, 2, 4, ordered=True))
    rule = GainStopping(SHARES, view=SpaceView(space, OBJECTIVES, None))
    others = kinds(16)
    ends = {}
    for kind in ("slow", "fast"):
        own = Standing(99, 100.0, (0.8,), parameters={"kind": kind, "size": 1})
        (mean,), _ = rule.predicted_ends([own], others, 0)
        ends[kind] = mean
        assert rule.goes_on(own, others) == (kind == "slow")
    assert ends["slow"] == pytest.approx(0.2, abs=0.05)
    bare = [replace(one, parameters={}) for one in others]
    (blind,), _ = rule.predicted_ends([Standing(99, 100.0, (0.5,))], bare, 0)
    assert blind == pytest.approx(0.4, abs=0.05), "from the rung alone, as nothing is known of the candidates"


def test_a_hopeless_trial_stops_and_a_promising_one_goes_on() -> None:
    rule, others = GainStopping(SHARES), trials(20)
    best = min(one.losses[-1] for one in others)
    assert not rule.goes_on(asked(0.9, 500.0), others)
    assert rule.goes_on(asked(best - 0.1, 500.0), others)


def test_the_only_one_of_its_memory_band_goes_on() -> None:
    rule, others = GainStopping(SHARES), trials(20)
    assert rule.goes_on(asked(0.9, 5.0), others)
    assert not rule.goes_on(asked(0.9, 400.0), others)


def test_where_a_rung_says_nothing_nobody_stops() -> None:
    same = [replace(one, losses=(0.5, 0.5, one.losses[-1]), train_losses=()) for one in trials(20, memory=100.0)]
    rule = GainStopping(SHARES, patience=1.0)
    assert all(rule.goes_on(Standing(99, 100.0, (0.5,) * many), same) for many in (1, 2))


def test_more_patience_never_stops_what_less_lets_go_on() -> None:
    others = trials(30, told=0.1)
    for loss in np.linspace(0.0, 1.0, 21):
        decided = [GainStopping(SHARES, patience).goes_on(asked(float(loss), 300.0), others) for patience in (0.1, 1.0)]
        assert decided[0] >= decided[1]


def test_units_and_order_do_not_matter() -> None:
    rng = np.random.default_rng(5)
    rule, others = GainStopping(SHARES, patience=0.3), trials(25, told=0.15)
    decided = []
    for loss in np.linspace(-0.2, 0.9, 12):
        own = asked(float(loss), float(rng.uniform(50, 500)))
        first = rule.goes_on(own, others)

        def scaled(one: Standing) -> Standing:
            return Standing(
                one.number,
                1024.0 * one.memory,
                tuple(5.0 * loss - 2.0 for loss in one.losses),
                one.complete,
                tuple(3.0 * loss for loss in one.train_losses),
            )

        assert rule.goes_on(scaled(own), [scaled(one) for one in others]) == first
        assert rule.goes_on(own, [others[index] for index in rng.permutation(len(others))]) == first
        decided.append(first)
    assert len(set(decided)) == 2


def test_nothing_stops_before_enough_are_complete_or_at_the_last_rung() -> None:
    assert GainStopping(SHARES).goes_on(asked(9.0, 500.0), trials(5))
    last = Standing(99, 500.0, (9.0, 9.0, 9.0), False, (9.0, 9.0, 9.0))
    assert GainStopping(SHARES).goes_on(last, trials(20))


def test_training_losses_are_used_only_where_all_have_them() -> None:
    others = trials(20)
    bare = [replace(one, train_losses=()) for one in others]
    rule = GainStopping(SHARES)
    assert rule.predicted_ends([asked(0.2, 1.0)], bare, 0)[0] == pytest.approx(
        rule.predicted_ends([replace(asked(0.2, 1.0), train_losses=())], others, 0)[0]
    )


def test_training_losses_tell_ends_apart_that_validation_does_not() -> None:
    others = [replace(one, losses=(0.5, 0.5, one.losses[-1])) for one in trials(20)]
    rule = GainStopping(SHARES)
    decided = [rule.goes_on(Standing(99, 500.0, (0.5,), False, (loss,)), others) for loss in (0.0, 1.9)]
    assert decided == [True, False]


def test_a_stopped_trial_is_wanted_again_where_those_that_beat_it_are_gone() -> None:
    rule = GainStopping(SHARES)
    cheap = [replace(one, number=100 + one.number, memory=40.0, losses=(0.01, 0.01, 0.01)) for one in trials(3)]
    stopped = replace(asked(0.5, 45.0), stopped=True)
    assert most_wanted(rule, [*trials(20), *cheap, stopped]) is None
    assert rule.behind([*trials(20), *cheap, stopped])[99] > 0
    # Whoever needs less memory turned out invalid, and the trial is the only one of its band.
    assert most_wanted(rule, [*trials(20), stopped]) == 99


def test_what_is_stopped_now_is_not_wanted_at_once() -> None:
    rng, rule, seen = np.random.default_rng(0), GainStopping(SHARES, patience=0.5), 0
    for attempt in range(100):
        field = trials(12, seed=attempt, told=0.1)
        trial = asked(float(rng.random()), float(rng.uniform(50, 500)))
        if not rule.goes_on(trial, field):
            seen += 1
            assert most_wanted(rule, [*field, replace(trial, stopped=True)]) is None
    assert seen > 5
