"""The samplers keep the contract; those that learn also learn what does not fit into memory."""

import pytest

from autopeft.domain.errors import UserError
from autopeft.domain.space import Condition, IntDomain, Parameter
from autopeft.domain.trial import TrialStatus
from autopeft.search import SAMPLERS, make_sampler
from tests.contract.sampler_contract import OBJECTIVES, SamplerContract, ToySpace, choice, conditional, grid_180, told


def memory_space():
    """Rank 1 to 64 times batch 1, 2, 4, 8: 256 points."""
    return ToySpace(Parameter(name="rank", domain=IntDomain(low=1, high=64)), choice("batch", 1, 2, 4, 8))


def edge(share):
    """The product of rank and batch above which this share of the 256 points lies."""
    products = sorted(rank * batch for rank in range(1, 65) for batch in (1, 2, 4, 8))
    return products[int(256 * (1 - share))]


def infeasible_trials(name, seed, share, count=120, measured=False):
    """Numbers of the trials that ran out of memory, where quality rises towards the edge."""
    sampler, limit, bad = make_sampler(name, memory_space(), OBJECTIVES, seed), edge(share), []
    for number in range(count):
        proposal = sampler.ask(number)
        used = proposal.parameters["rank"] * proposal.parameters["batch"]
        if used > limit:
            bad.append(number)
            violation = used / limit - 1 if measured else None
            sampler.tell(told(number, proposal, TrialStatus.INFEASIBLE, violation))
        else:
            sampler.tell(told(number, proposal))
    return bad


class LearnsMemory:
    """For samplers that learn."""

    @pytest.mark.parametrize("seed", range(5))
    def test_of_the_last_60_of_120_trials_at_most_5_run_out_of_memory_where_27_percent_would(self, seed):
        bad = infeasible_trials(self.name, seed, 0.27)
        print(f"{self.name}, seed {seed}: {len(bad)} of 120 out of memory, {sum(n >= 60 for n in bad)} of the last 60")
        assert sum(number >= 60 for number in bad) <= 5
        assert len(bad) <= 20

    def test_a_small_infeasible_region_is_learned_too(self):
        bad = infeasible_trials(self.name, 0, 0.05)
        assert sum(number >= 60 for number in bad) <= 5

    def test_measured_violations_are_understood(self):
        bad = infeasible_trials(self.name, 0, 0.27, measured=True)
        assert sum(number >= 60 for number in bad) <= 5


class TestTpe(LearnsMemory, SamplerContract):
    name = "tpe"

    def test_it_finds_better_trials_than_random_draws(self):
        def best_half(name):
            space, total = ToySpace(*(choice(letter, *range(8), ordered=True) for letter in "abcdef")), 0.0
            for seed in range(3):
                sampler = make_sampler(name, space, OBJECTIVES[:1], seed)
                for number in range(60):
                    proposal = sampler.ask(number)
                    one = told(number, proposal)
                    quality = -sum((value - 5) ** 2 for value in proposal.parameters.values())
                    sampler.tell(type(one)(one.trial, (quality,)))
                    total += quality if number >= 30 else 0
            return total / 90

        assert best_half("tpe") > best_half("random") + 10


class TestFront(LearnsMemory, SamplerContract):
    name = "front"


class TestEvolution(LearnsMemory, SamplerContract):
    name = "evolution"
    startup = 8


class TestNsga3(LearnsMemory, SamplerContract):
    name = "nsga3"


class TestNsga2(LearnsMemory, SamplerContract):
    name = "nsga2"

    def test_generations_are_kept_over_a_replay(self):
        history = self.run(self.sampler(grid_180(), startup=6), 30)
        generations = [next(iter(one.trial.sampler_state.values())) for one in history]
        assert generations == [number // 6 for number in range(30)]


class TestRandom(SamplerContract):
    name = "random"

    def test_it_stays_the_baseline_and_does_not_learn(self):
        assert len(infeasible_trials("random", 0, 0.27)) > 20


@pytest.mark.slow
class TestGp(SamplerContract):
    name = "gp"
    startup = 11
    long_startup = 118
    history = 13

    def test_it_learns_what_does_not_fit(self):
        bad = infeasible_trials("gp", 0, 0.27, count=20)
        assert sum(number >= 12 for number in bad) <= 2

    def test_a_space_without_a_common_parameter_is_refused(self):
        always = Condition(parameter="only", values=(1,))
        space = ToySpace(choice("only", 1), choice("a", 1, 2, when=(always,)))
        with pytest.raises(UserError, match="every parameter of it is conditional"):
            make_sampler("gp", space, OBJECTIVES, 0)


def test_every_sampler_of_the_list_can_be_made_and_says_what_it_is():
    assert list(SAMPLERS) == ["front", "tpe", "gp", "nsga2", "nsga3", "evolution", "random"]
    for name, summary in SAMPLERS.items():
        assert summary.endswith(".")
        assert make_sampler(name, conditional(), OBJECTIVES, 0).ask(0) is not None


def test_a_misspelt_sampler_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"nothing is called 'tpee'.*Did you mean 'tpe'"):
        make_sampler("tpee", grid_180(), OBJECTIVES, 0)
