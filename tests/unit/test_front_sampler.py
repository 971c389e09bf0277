"""The front sampler: what it sees of a space, what it keeps away from, and a plain Optuna study."""

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autopeft.domain.candidate import Candidate, Insertion, Policy, Pruning
from autopeft.domain.ports import Known
from autopeft.domain.results import ScoredTrial
from autopeft.domain.space import FloatDomain, IntDomain, Parameter
from autopeft.domain.trial import TrialStatus
from autopeft.search import make_sampler
from autopeft.search.front import FrontSampler
from autopeft.search.front.axes import Axes
from autopeft.search.front.beliefs import Beliefs
from autopeft.search.front.drawing import change, corner, draw
from autopeft.search.front.features import Encoder, Shape, describe
from autopeft.search.front.screening import Tried, risks
from autopeft.search.front.views import Point, SpaceView
from tests.contract.sampler_contract import OBJECTIVES, ToySpace, choice, conditional, told

DISTRIBUTIONS = [
    optuna.distributions.IntDistribution(1, 64, log=True),
    optuna.distributions.IntDistribution(0, 5),
    optuna.distributions.IntDistribution(2, 10, step=4),
    optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
    optuna.distributions.FloatDistribution(0.0, 1.0, step=0.25),
    optuna.distributions.CategoricalDistribution(["a", None, 3]),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_draws_and_changes_stay_in_the_range_and_changes_change(distribution):
    rng = np.random.default_rng(0)
    values = [draw(distribution, rng) for _ in range(60)] + [corner(distribution, rng) for _ in range(10)]
    moved = [change(distribution, value, rng) for value in values]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in [*values, *moved])
    assert sum(one != other for one, other in zip(values, moved, strict=True)) > 40
    if distribution.single() is False and not isinstance(distribution, optuna.distributions.FloatDistribution):
        assert len(set(values)) > 2


def test_a_range_without_a_choice_stays_as_it_is():
    rng = np.random.default_rng(0)
    assert change(optuna.distributions.IntDistribution(3, 3), 3, rng) == 3
    assert change(optuna.distributions.CategoricalDistribution(["a"]), "a", rng) == "a"


def insertion(method="lora", layers=(0, 1), modules=("attention.query",), **settings):
    return Insertion(method=method, layers=layers, modules=modules, settings=settings)


def test_a_candidate_has_the_same_traits_whatever_else_is_in_the_space():
    one = Candidate(
        insertions=(insertion(layers=(2, 3), rank=8),),
        learning_rate=1e-3,
        pruning=Pruning(criterion="light-peft", settings={"heads": 0.5}),
        policy=Policy(name="ist", settings={"trained": 0.25}),
    )
    traits = describe(one, Shape(depth=4, mixed=False, parted=False))
    assert traits["method"] == "lora"
    assert traits["rank"] == 8
    assert traits["layers.count"] == 0.5
    assert traits["layers.centre"] == pytest.approx(2.5 / 3)
    assert traits["layers.bits"] == (0, 0, 1, 1)
    assert traits["modules"][0] == 1
    assert sum(traits["modules"]) == 1
    assert traits["pruning"] == "light-peft"
    assert traits["pruning.heads"] == 0.5
    assert traits["policy.trained"] == 0.25
    assert traits["learning_rate"] == 1e-3


def test_in_a_mix_the_sizes_of_different_methods_stay_apart():
    both = Candidate(
        insertions=(insertion("serial", (0,), size=4), insertion("parallel", (1,), size=64)), learning_rate=1e-3
    )
    alone = Candidate(insertions=(insertion("serial", (0, 1), size=4),), learning_rate=1e-3)
    shape = Shape.of([both, alone])
    traits = describe(both, shape)
    assert (traits["serial.size"], traits["parallel.size"]) == (4, 64)
    assert traits["serial.layers.bits"] == (1, 0)
    assert "parallel.size" not in describe(alone, shape)


def test_columns_are_scaled_say_what_is_absent_and_do_not_repeat_each_other():
    sample = [
        {"rank": 1, "half": 0.5, "kind": "a", "layers.count": 0.25, "layers.centre": 1.0},
        {"rank": 8, "half": 0.5, "kind": "b", "layers.count": 0.5, "layers.centre": 0.5},
        {"rank": 64, "half": 0.5, "kind": "b", "layers.count": 0.75, "layers.centre": 0.0, "only": 4.0},
        {"rank": 64, "half": 0.5, "kind": "a", "layers.count": 0.5, "layers.centre": 0.5, "only": 5.0},
    ]
    encoder = Encoder.of(sample)
    assert [name for name, _ in encoder.columns] == ["kind", "layers.centre", "only", "rank"]  # the count is its mirror
    rows = np.array([encoder.row(traits) for traits in sample])
    by_name = {name: rows[:, encoder.groups == index] for index, (name, _) in enumerate(encoder.columns)}
    assert by_name["rank"][:, 0] == pytest.approx([0, 0.5, 1, 1])  # on a logarithmic scale
    assert by_name["only"].tolist() == [[0.5, 0], [0.5, 0], [0, 1], [1, 1]]
    assert np.linalg.norm(by_name["kind"][0] - by_name["kind"][1]) == pytest.approx(1)


def products():
    """Rank times layers decides memory, known; quality rises with its logarithm and with a hidden preference."""
    return ToySpace(
        Parameter(name="rank", domain=IntDomain(low=1, high=64, log=True)),
        Parameter(name="layers", domain=IntDomain(low=1, high=12)),
        Parameter(name="rate", domain=FloatDomain(low=1e-4, high=1e-2, log=True)),
        choice("variant", "p", "q", "r"),
    )


def size_of(values):
    return float(values["rank"] * values["layers"])


def quality_of(values):
    off = math.log10(values["rate"]) + 3
    liked = {"p": 0.0, "q": 0.1, "r": -0.1}[values["variant"]]
    return 0.5 + 0.05 * math.log2(size_of(values)) + liked - 0.3 * off**2


def known(candidate):
    return Known({"bytes": size_of(candidate.insertions[0].settings)})


def run(name, seed, trials, knows, space=None):
    """Hypervolume of a search below quality 0 and 1000 bytes on a logarithmic scale."""
    from autopeft.domain.pareto import hypervolume

    sampler = make_sampler(name, space or products(), OBJECTIVES, seed, known=knows)
    found = []
    for number in range(trials):
        proposal = sampler.ask(number)
        values = (quality_of(proposal.parameters), size_of(proposal.parameters))
        sampler.tell(ScoredTrial(told(number, proposal).trial, values))
        found.append((-values[0], math.log(values[1])))
    return hypervolume(np.array(found), np.array([0.0, math.log(1000.0)]))


@pytest.mark.slow
def test_it_finds_more_of_the_front_than_random_draws_and_knowing_memory_or_learning_it_both_do():
    scores = {
        label: np.mean([run(name, seed, 16, knows) for seed in range(1 + (name == "random"))])
        for label, name, knows in (("known", "front", known), ("learned", "front", None), ("random", "random", None))
    }
    best = 1.02 * 6.9  # the front at the best variant and rate is a little below this
    assert scores["known"] > scores["random"] * 1.1
    assert scores["learned"] > scores["random"] * 1.1
    assert scores["known"] <= best


def test_what_is_known_not_to_fit_is_not_proposed():
    def fits(candidate):
        size = size_of(candidate.insertions[0].settings)
        return Known({"bytes": size}, feasible=size <= 100)

    sampler = make_sampler("front", products(), OBJECTIVES, 0, known=fits)
    for number in range(15):
        proposal = sampler.ask(number)
        assert size_of(proposal.parameters) <= 100
        values = (quality_of(proposal.parameters), size_of(proposal.parameters))
        sampler.tell(ScoredTrial(told(number, proposal).trial, values))


def point(key, row, known=(None, None), **more):
    return Point({}, key, np.array(row, dtype=float), known, **more)


def test_near_an_infeasible_point_and_above_its_memory_all_is_taken_for_infeasible():
    fine = [point(index, (0.1 * index, 0.5)) for index in range(5)]
    bad = point("bad", (0.9, 0.5), memory=100.0)
    asked = [point("near", (0.95, 0.55)), point("far", (0.2, 0.1)), point("above", (0.2, 0.1), memory=101.0)]
    asked += [point("below", (0.2, 0.1), memory=50.0), point("known", (0.0, 0.0), feasible=False)]
    found = risks(asked, Tried(fine, [bad]))
    assert found[0] == 1.0
    assert found[1] < 0.3
    assert found[2] == 1.0
    assert found[3] < 0.3
    assert found[4] == 1.0
    assert risks(asked, Tried(fine, [])).tolist() == [0, 0, 0, 0, 1]


def beliefs(values, costs):
    trials = [point(index, (index / 10,), (None, cost)) for index, cost in enumerate(costs)]
    axes = Axes((0, 1), (-1.0, 1.0), (False, True))
    return Beliefs(axes, trials, np.column_stack([values, costs]), [0], np.array([0])), trials


def test_a_running_trial_makes_what_is_like_it_worth_less():
    told_so_far, _ = beliefs([0.5, 0.55, 0.6, 0.7], [10.0, 20.0, 40.0, 80.0])
    asked = [point("twin", (0.61,), (None, 100.0)), point("other", (1.0,), (None, 30.0))]
    running = [point("runs", (0.6,), (None, 100.0))]
    reference = told_so_far.reference([*asked, *running])
    alone, beside = told_so_far.worth(asked, [], reference), told_so_far.worth(asked, running, reference)
    assert beside[0] < 0.5 * alone[0]
    assert beside[1] > 0.6 * alone[1]


def test_a_lucky_trial_of_a_repeated_candidate_does_not_make_its_place_on_the_front():
    rng = np.random.default_rng(0)
    values = 0.5 + 0.01 * rng.standard_normal(12)
    values[5] = 0.56
    trials = [point(index, (index // 4 / 2,), (None, 10.0)) for index in range(12)]  # three candidates, four seeds each
    axes = Axes((0, 1), (-1.0, 1.0), (False, True))
    told_so_far = Beliefs(axes, trials, np.column_stack([values, np.full(12, 10.0)]), [0], np.array([0]))
    assert -told_so_far.held[5, 0] == pytest.approx(values[4:8].mean(), abs=0.006)
    assert told_so_far.noise == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("factor", [1e-3, 1e6])
def test_other_units_of_memory_lead_to_the_same_search(factor):
    def proposals(scale):
        knows = lambda one: Known({"bytes": scale * size_of(one.insertions[0].settings)})  # noqa: E731
        sampler = make_sampler("front", products(), OBJECTIVES, 3, known=knows)
        found = []
        for number in range(12):
            found.append(sampler.ask(number))
            values = (quality_of(found[-1].parameters), scale * size_of(found[-1].parameters))
            sampler.tell(ScoredTrial(told(number, found[-1]).trial, values))
        return [one.parameters for one in found]

    assert proposals(1.0) == proposals(factor)


def test_three_objectives_of_which_two_are_known():
    class Three(ToySpace):
        pass

    from autopeft.domain.objective import Direction, Objective, Unit

    third = Objective("count", Direction.MINIMIZE, Unit.COUNT, "", lambda measured: math.nan)
    space = Three(*products().parameters)
    knows = lambda one: Known(  # noqa: E731
        {
            "bytes": size_of(one.insertions[0].settings),
            "count": float(one.insertions[0].settings["layers"]),
        }
    )
    sampler = make_sampler("front", space, (*OBJECTIVES, third), 0, known=knows)
    for number in range(12):
        proposal = sampler.ask(number)
        values = (quality_of(proposal.parameters), size_of(proposal.parameters), float(proposal.parameters["layers"]))
        sampler.tell(ScoredTrial(told(number, proposal).trial, values))


def test_a_failed_trial_is_not_proposed_again_though_nothing_is_learned_of_it():
    view = SpaceView(conditional(), OBJECTIVES, None)
    sampler = make_sampler("front", conditional(), OBJECTIVES, 0)
    seen = set()
    for number in range(14):
        proposal = sampler.ask(number)
        assert proposal.candidate.digest not in seen
        seen.add(proposal.candidate.digest)
        sampler.tell(told(number, proposal, TrialStatus.CRASHED if number % 2 else TrialStatus.COMPLETE))
    assert view.groups.max() >= 2


def twins(candidate):
    """Two candidates that are alike but for their seconds."""
    (one,) = candidate.insertions
    return Known(seconds=3.0 if one.settings["twin"] == "slow" else 1.0)


def proposed(space, seed, trials):
    """What a `front` sampler tries where twins differ in their seconds."""
    view = SpaceView(space, OBJECTIVES, twins, seed)
    sampler, found = make_sampler("front", space, OBJECTIVES, seed, view=view), []
    for number in range(trials):
        proposal = sampler.ask(number)
        found.append(proposal.parameters)
        sampler.tell(told(number, proposal))
    return found


def test_of_two_that_are_worth_the_same_the_quicker_one_is_tried():
    space = ToySpace(
        choice("twin", "slow", "quick"), Parameter(name="size", domain=IntDomain(low=1, high=1000, log=True))
    )
    found = [one["twin"] for seed in range(2) for one in proposed(space, seed, 12)]
    assert found.count("quick") > 0.75 * len(found)


def test_the_first_trials_are_further_apart_than_draws():
    space = ToySpace(
        choice("twin", "slow", "slower"),
        Parameter(name="size", domain=FloatDomain(low=0.0, high=1.0)),
        Parameter(name="rate", domain=FloatDomain(low=0.0, high=1.0)),
    )

    def apart(sampler, seed):
        one = make_sampler(sampler, space, OBJECTIVES, seed)
        first = [one.ask(number) for number in range(4)]
        rows = np.array([(p["size"], p["rate"], float(p["twin"] == "slow")) for p in (q.parameters for q in first)])
        return min(np.linalg.norm(rows[i] - rows[j]) for i in range(4) for j in range(i))

    away = {name: np.mean([apart(name, seed) for seed in range(12)]) for name in ("front", "random")}
    assert away["front"] > 1.4 * away["random"]


def objective(trial):
    kind = trial.suggest_categorical("kind", ["lora", "prefix"])
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    size = trial.suggest_int("rank", 1, 64, log=True) if kind == "lora" else trial.suggest_int("length", 4, 16)
    return 0.05 * math.log2(size) - 0.3 * (math.log10(rate) + 3) ** 2, float(size)


def study(sampler, trials):
    made = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    made.optimize(objective, n_trials=trials)
    return made


def test_it_works_in_a_plain_optuna_study_with_conditional_parameters_and_known_objectives():
    asked = []

    def size(params):
        asked.append(params)
        return float(params["rank"] if params["kind"] == "lora" else params["length"])

    first, again = (study(FrontSampler(known={1: size}, seed=4, startup=6), 14) for _ in range(2))
    assert [one.params for one in first.trials] == [one.params for one in again.trials]
    assert all(one.state is TrialState.COMPLETE for one in first.trials)
    assert asked
    # Model-based trials keep to good rates, random ones do not.
    rates = [abs(math.log10(one.params["rate"]) + 3) for one in first.trials]
    assert np.mean(rates[8:]) < np.mean(rates[:6])


def test_in_a_plain_study_running_trials_are_seen_and_one_objective_is_enough():
    made = optuna.create_study(direction="minimize", sampler=FrontSampler(seed=0, startup=4))
    distribution = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for x in (0.1, 0.3, 0.6, 0.9):
        made.add_trial(create_trial(params={"x": x}, distributions=distribution, value=(x - 0.4) ** 2))
    batch = [made.ask() for _ in range(3)]
    values = [one.suggest_float("x", 0.0, 1.0) for one in batch]
    assert len({round(value, 3) for value in values}) == 3
    assert min(abs(value - 0.4) for value in values) < 0.15
