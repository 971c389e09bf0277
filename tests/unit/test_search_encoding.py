"""Values survive the trip to Optuna and back; what is likely infeasible is told apart."""

import random

import optuna
import pytest

from autopeft.domain.errors import UserError
from autopeft.domain.space import FloatDomain, IntDomain, Parameter
from autopeft.search.encoding import distribution, encode, enumerate_values
from autopeft.search.feasibility import Feasibility
from tests.contract.sampler_contract import ToySpace, choice, conditional, grid_180


def test_values_that_are_equal_in_python_but_differ_stay_apart():
    space = ToySpace(choice("a", 1, True, "1", 2.5))
    encoded = [encode(space.parameters, {"a": value})[0]["a"] for value in (1, True, "1", 2.5)]
    assert encoded == [0, 1, 2, 3]


def test_an_ordered_choice_is_a_number_and_an_unordered_one_is_not():
    assert isinstance(distribution(choice("a", 1, 2, 4, ordered=True).domain), optuna.distributions.IntDistribution)
    assert isinstance(distribution(choice("a", 1, 2, 4).domain), optuna.distributions.CategoricalDistribution)


def test_every_point_of_a_finite_space_is_enumerated_once():
    points = [tuple(values.items()) for values in enumerate_values(grid_180().parameters)]
    assert len(set(points)) == len(points) == 180


def test_inactive_parameters_are_left_out_of_an_enumeration():
    parameters = [one for one in conditional().parameters if one.name != "rate"]
    points = list(enumerate_values(parameters))
    assert len(points) == 64 + 3
    assert all(("rank" in point) == (point["method"] == "lora") for point in points)


@pytest.mark.parametrize("value", [5, "s", 0.5, None])
def test_a_stored_value_that_the_space_does_not_have_is_refused(value):
    values = {} if value is None else {"a": value}
    with pytest.raises(UserError, match="The space was changed since the run began"):
        encode([choice("a", 1, 2)], values)


def test_optuna_stays_quiet():
    import autopeft.search  # noqa: F401

    assert optuna.logging.get_verbosity() >= optuna.logging.ERROR


def test_the_edge_of_a_product_is_learned_from_a_few_dozen_trials():
    parameters = [
        Parameter(name="rank", domain=IntDomain(low=1, high=64)),
        Parameter(name="layers", domain=IntDomain(low=1, high=12)),
        choice("modules", "qv", "ffn", "all"),
        Parameter(name="rate", domain=FloatDomain(low=1e-4, high=1e-2, log=True)),
    ]
    width = (1.0, 2.5, 4.5)
    rng = random.Random(0)

    def draw():
        point = {"rank": rng.randint(1, 64), "layers": rng.randint(1, 12), "modules": rng.randrange(3)}
        return {**point, "rate": 10 ** rng.uniform(-4, -2)}

    def over(point):
        return point["rank"] * point["layers"] * width[point["modules"]] > 700

    seen = [draw() for _ in range(60)]
    learned = Feasibility(parameters, seen, [over(point) for point in seen])
    fresh = [draw() for _ in range(400)]
    right = sum((learned.risk(point) > 0.5) == over(point) for point in fresh)
    majority = max(sum(map(over, fresh)), 400 - sum(map(over, fresh)))
    assert right / 400 > 0.92
    assert right > majority + 40


def test_nothing_but_infeasible_trials_is_a_high_risk_everywhere():
    parameters = list(grid_180().parameters)
    seen = [encode(parameters, values)[0] for values in list(enumerate_values(parameters))[::40]]
    learned = Feasibility(parameters, seen, [True] * len(seen))
    assert min(learned.risk(point) for point in seen) > 0.5
