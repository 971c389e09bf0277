"""Importance names the parameters that decide an objective, and claims nothing where there is nothing to see."""

import math
import random

import pytest

from autopeft.domain.results import ScoredTrial
from autopeft.domain.space import Condition, FloatDomain, IntDomain, Parameter
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.search import importance
from tests.contract.sampler_contract import OBJECTIVES, ToySpace, choice

SPACE = ToySpace(
    choice("method", "lora", "prefix"),
    Parameter(
        name="rank", domain=IntDomain(low=1, high=64, log=True), when=(Condition(parameter="method", values=("lora",)),)
    ),
    choice("modules", "qv", "ffn", "all"),
    choice("dropout", 0.0, 0.05, 0.1, ordered=True),
    Parameter(name="rate", domain=FloatDomain(low=1e-4, high=1e-2, log=True)),
)


def trials(count, score, seed=0):
    """Random points of the space with the objectives' values that `score(values, rng)` gives."""
    rng, made = random.Random(seed), []
    for number in range(count):
        values = {"method": rng.choice(["lora", "prefix"])}
        if values["method"] == "lora":
            values["rank"] = round(2 ** rng.uniform(0, 6))
        values["modules"] = rng.choice(["qv", "ffn", "all"])
        values["dropout"] = rng.choice([0.0, 0.05, 0.1])
        values["rate"] = 10 ** rng.uniform(-4, -2)
        trial = Trial(
            number=number,
            candidate=SPACE.resolve(values),
            parameters=values,
            seed=0,
            status=TrialStatus.COMPLETE,
        )
        made.append(ScoredTrial(trial, score(values, rng)))
    return made


def planted(values, rng):
    """Quality by learning rate, bytes by modules, each with some noise."""
    quality = 1.0 - abs(math.log10(values["rate"]) + 3) + rng.gauss(0, 0.05)
    return quality, {"qv": 1.0, "ffn": 2.0, "all": 4.0}[values["modules"]] + rng.gauss(0, 0.1)


@pytest.mark.parametrize("count", [24, 60, 200])
def test_the_planted_parameter_has_the_largest_share_of_its_objective(count):
    found = importance(SPACE, OBJECTIVES, trials(count, planted), seed=0)
    assert next(iter(found["quality"])) == "rate"
    assert next(iter(found["bytes"])) == "modules"
    assert found["quality"]["rate"] > 0.5
    assert found["bytes"]["modules"] > 0.5


def test_shares_add_up_to_one_and_are_sorted():
    for shares in importance(SPACE, OBJECTIVES, trials(60, planted), seed=0).values():
        assert sum(shares.values()) == pytest.approx(1.0)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert set(shares) == {parameter.name for parameter in SPACE.parameters}


def test_a_conditional_parameter_can_be_the_important_one():
    def by_rank(values, rng):
        return 1.0 - abs(math.log2(values.get("rank", 64)) - 3) / 6 + rng.gauss(0, 0.02), 1.0

    shares = importance(SPACE, OBJECTIVES, trials(120, by_rank), seed=0)["quality"]
    assert next(iter(shares)) == "rank"


def test_fewer_than_eight_complete_trials_say_nothing():
    few = trials(12, planted)
    few[7:] = [ScoredTrial(one.trial.model_copy(update={"status": TrialStatus.CRASHED}), None) for one in few[7:]]
    assert importance(SPACE, OBJECTIVES, few, seed=0) == {}
    assert importance(SPACE, OBJECTIVES, [], seed=0) == {}
    assert importance(SPACE, OBJECTIVES, trials(8, planted), seed=0)


def test_an_objective_that_never_varies_is_left_out():
    found = importance(SPACE, OBJECTIVES, trials(40, lambda values, rng: (planted(values, rng)[0], 7.0)), seed=0)
    assert list(found) == ["quality"]


def test_the_same_seed_gives_the_same_shares():
    history = trials(40, planted)
    assert importance(SPACE, OBJECTIVES, history, seed=3) == importance(SPACE, OBJECTIVES, history, seed=3)
