"""The samplers keep the contract; those that learn also learn what does not fit into memory."""

import pytest

from autopeft.domain.errors import UserError
from autopeft.domain.space import Condition, IntDomain, Parameter
from autopeft.domain.trial import TrialStatus
from autopeft.search import SAMPLERS, make_sampler
from autopeft.search.encoding import encode
from autopeft.search.extras import BOTORCH, SAAS, missing
from autopeft.search.front import sampler as front_sampler
from autopeft.search.paper.models import Fit, Map, Nuts
from autopeft.search.paper.sampler import BATCH, Effort
from autopeft.search.samplers import PAPER
from tests.contract.sampler_contract import (
    OBJECTIVES,
    SamplerContract,
    ToySpace,
    choice,
    conditional,
    grid_180,
    stored,
    told,
)


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
    """With the closed form: nothing is known of two objectives here, and BoTorch would take over."""

    name = "front"

    @pytest.fixture(autouse=True)
    def _without_botorch(self, monkeypatch):
        monkeypatch.setattr(front_sampler, "missing", lambda packages: list(packages))


@pytest.mark.slow
@pytest.mark.skipif(bool(missing(BOTORCH)), reason="the extra botorch is not installed")
class TestFrontOfTwoBlackBoxes(SamplerContract):
    name = "front"
    startup = 11
    long_startup = 118
    history = 13


@pytest.mark.slow
@pytest.mark.skipif(bool(missing(SAAS)), reason="the extra botorch is not installed")
class Paper(SamplerContract):
    """The paper's sampler, which takes seconds for a batch: with few climbs and draws."""

    startup = 11
    long_startup = 118
    history = 13
    fit: Fit

    def sampler(self, space, seed=0, startup=None):
        effort = Effort(fit=self.fit, restarts=2, evaluations=60, draws=8)
        return make_sampler(self.name, space, OBJECTIVES, seed, startup or self.startup, effort=effort)

    def test_it_learns_what_does_not_fit(self):
        sampler, limit, bad = self.sampler(memory_space()), edge(0.27), []
        for number in range(23):
            proposal = sampler.ask(number)
            used = proposal.parameters["rank"] * proposal.parameters["batch"]
            bad += [number] if used > limit else []
            sampler.tell(told(number, proposal, TrialStatus.INFEASIBLE if used > limit else TrialStatus.COMPLETE))
        assert sum(number >= 15 for number in bad) <= 2

    def test_the_other_three_of_a_batch_are_kept_over_a_replay(self):
        live, resumed = self.sampler(grid_180()), self.sampler(grid_180())
        history = self.run(live, 13)
        batch = history[11].trial.sampler_state[BATCH]
        assert len(batch) == 4
        resumed.replay([stored(one) for one in history])
        own = [
            encode(grid_180().parameters, one.trial.parameters)[0] for one in [*history[11:], *self.run(resumed, 2, 13)]
        ]
        assert own == [chosen for chosen, _ in batch]


class TestAutopeft(Paper):
    name = "autopeft"
    fit = Nuts(warmup=4, samples=4, thinning=2)


class TestAutopeftMap(Paper):
    name = "autopeft-map"
    fit = Map(taus=2)


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
    assert list(SAMPLERS) == ["front", "tpe", "gp", "nsga2", "nsga3", "evolution", *PAPER, "random"]
    for name, summary in SAMPLERS.items():
        assert summary.endswith(".")
        if name in PAPER and missing(SAAS):
            continue
        assert make_sampler(name, conditional(), OBJECTIVES, 0).ask(0) is not None


def test_a_misspelt_sampler_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"nothing is called 'tpee'.*Did you mean 'tpe'"):
        make_sampler("tpee", grid_180(), OBJECTIVES, 0)
