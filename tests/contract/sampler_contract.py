"""What every sampler promises. A test class that inherits `SamplerContract` and names one checks it."""

import itertools
import math
from collections.abc import Mapping, Sequence

import pytest

from autopeft.domain.candidate import Candidate, Insertion, Setting
from autopeft.domain.errors import UserError
from autopeft.domain.objective import Direction, Objective, Unit
from autopeft.domain.results import ScoredTrial
from autopeft.domain.space import ChoiceDomain, Condition, FloatDomain, IntDomain, Parameter
from autopeft.domain.trial import Failure, FailureReason, Trial, TrialStatus
from autopeft.search import make_sampler

OBJECTIVES = (
    Objective("quality", Direction.MAXIMIZE, Unit.FRACTION, "", lambda measured: math.nan, worst=0.0),
    Objective("bytes", Direction.MINIMIZE, Unit.BYTES, "", lambda measured: math.nan),
)


class ToySpace:
    """A space whose candidate holds the values of the parameters and nothing else."""

    name = "toy"

    def __init__(self, *parameters: Parameter) -> None:
        self.parameters: Sequence[Parameter] = parameters

    def resolve(self, values: Mapping[str, Setting]) -> Candidate | None:
        settings = {}
        for parameter in self.parameters:
            if parameter.active(values):
                settings[parameter.name] = values[parameter.name]
        assert set(settings) == set(values), "a value of a parameter that is not active"
        return Candidate(
            insertions=(Insertion(method="toy", layers=(0,), modules=("ffn.in",), settings=settings),),
            learning_rate=1e-3,
        )

    def size(self) -> int | None:
        sizes = [parameter.domain.size() for parameter in self.parameters]
        return None if None in sizes or any(one.when for one in self.parameters) else math.prod(sizes)


def choice(name: str, *values: Setting, ordered: bool = False, when: tuple[Condition, ...] = ()) -> Parameter:
    return Parameter(name=name, domain=ChoiceDomain(values=values, ordered=ordered), when=when)


def grid_180() -> ToySpace:
    """180 points: 5 x 4 x 3 x 3."""
    return ToySpace(
        choice("a", "p", "q", "r", "s", "t"),
        choice("b", 1, 2, 4, 8, ordered=True),
        choice("c", False, True, "maybe"),
        Parameter(name="d", domain=IntDomain(low=1, high=3)),
    )


def conditional() -> ToySpace:
    """Continuous, with parameters that exist only for some methods."""
    return ToySpace(
        choice("method", "lora", "prefix"),
        Parameter(
            name="rank",
            domain=IntDomain(low=1, high=64, log=True),
            when=(Condition(parameter="method", values=("lora",)),),
        ),
        choice("length", 4, 8, 16, ordered=True, when=(Condition(parameter="method", values=("prefix",)),)),
        Parameter(name="rate", domain=FloatDomain(low=1e-4, high=1e-2, log=True)),
    )


def scores(values: Mapping[str, Setting]) -> tuple[float, float]:
    """Quality and bytes of any toy parameters: more of anything is better and larger, with one soft preference."""
    size = sum(float(value) for value in values.values() if not isinstance(value, str))
    liked = sum(len(value) for value in values.values() if isinstance(value, str))
    return 1.0 - 1.0 / (1.0 + size + 0.1 * liked), 1000.0 * size + liked


def told(number: int, proposal, status=TrialStatus.COMPLETE, violation=None) -> ScoredTrial:
    """How the trial of a proposal stands; a complete one with its scores."""
    failure = None
    if status in (TrialStatus.INFEASIBLE, TrialStatus.INVALID, TrialStatus.CRASHED, TrialStatus.LOST):
        reasons = {
            TrialStatus.INFEASIBLE: FailureReason.OUT_OF_MEMORY,
            TrialStatus.INVALID: FailureReason.NOT_FINITE,
            TrialStatus.CRASHED: FailureReason.EXCEPTION,
            TrialStatus.LOST: FailureReason.WORKER_DIED,
        }
        failure = Failure(reason=reasons[status], text="It failed.", violation=violation)
    trial = Trial(
        number=number,
        candidate=proposal.candidate,
        parameters=proposal.parameters,
        seed=0,
        status=status,
        failure=failure,
        sampler_state=proposal.sampler_state,
    )
    return ScoredTrial(trial, scores(proposal.parameters) if status is TrialStatus.COMPLETE else None)


def stored(scored: ScoredTrial) -> ScoredTrial:
    """The trial as a database gives it back: through JSON."""
    return ScoredTrial(Trial.model_validate_json(scored.trial.model_dump_json()), scored.values)


class SamplerContract:
    """Inherit it and set `name`; `startup` keeps a slow model to the last trials of a long test."""

    name: str
    startup: int | None = None
    """Random trials at first, in short tests."""
    long_startup: int | None = None
    """The same in tests of a hundred trials and more."""
    history = 26
    """Trials before a replay."""

    def sampler(self, space, seed=0, startup=None):
        return make_sampler(self.name, space, OBJECTIVES, seed, startup or self.startup)

    def run(self, sampler, count, first=0, status=lambda number: TrialStatus.COMPLETE):
        history = []
        for number in range(first, first + count):
            proposal = sampler.ask(number)
            history.append(told(number, proposal, status(number)))
            sampler.tell(history[-1])
        return history

    def upcoming(self, sampler, first, count):
        return [(one.trial.parameters, one.trial.sampler_state) for one in self.run(sampler, count, first)]

    @pytest.mark.parametrize("space", [grid_180, conditional])
    def test_the_same_seed_proposes_the_same_and_another_seed_something_else(self, space):
        first, again, other = (
            [one.trial.parameters for one in self.run(self.sampler(space(), seed), 14)] for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other

    @pytest.mark.parametrize("space", [grid_180, conditional])
    def test_after_a_replay_the_next_five_proposals_are_those_of_the_undisturbed_search(self, space):
        endings = itertools.cycle(
            [TrialStatus.COMPLETE] * 4 + [TrialStatus.INFEASIBLE, TrialStatus.COMPLETE, TrialStatus.CRASHED]
        )
        plan = [next(endings) for _ in range(self.history)]
        live = self.sampler(space())
        history = self.run(live, self.history, status=plan.__getitem__)
        resumed = self.sampler(space())
        resumed.replay([stored(one) for one in history])
        assert self.upcoming(resumed, self.history, 5) == self.upcoming(live, self.history, 5)

    def test_running_and_pending_trials_are_replayed_too(self):
        live, resumed = self.sampler(conditional()), self.sampler(conditional())
        history = self.run(live, 12)
        for number, status in ((12, TrialStatus.RUNNING), (13, TrialStatus.PENDING)):
            proposal = live.ask(number)
            history.append(told(number, proposal, status))
            live.tell(history[-1])
        resumed.replay([stored(one) for one in history])
        assert self.upcoming(resumed, 14, 2) == self.upcoming(live, 14, 2)

    def test_the_order_in_which_parallel_trials_end_does_not_matter(self):
        first, second = self.sampler(grid_180()), self.sampler(grid_180())
        self.run(first, 12)
        self.run(second, 12)
        batch = [told(number, first.ask(number)) for number in range(12, 16)]
        assert [one.trial.parameters for one in batch] == [second.ask(number).parameters for number in range(12, 16)]
        for one in batch:
            first.tell(one)
        for one in reversed(batch):
            second.tell(one)
        assert self.upcoming(first, 16, 2) == self.upcoming(second, 16, 2)

    def test_no_candidate_comes_twice_in_120_of_180_points(self):
        history = self.run(self.sampler(grid_180(), startup=self.long_startup), 120)
        assert len({one.trial.digest for one in history}) == 120

    def test_a_finite_space_is_gone_through_once_and_then_over(self):
        space = ToySpace(choice("a", "x", "y", "z"), choice("b", False, True))
        sampler = self.sampler(space, startup=20)
        assert len({one.trial.digest for one in self.run(sampler, 6)}) == 6
        assert sampler.ask(6) is None
        resumed = self.sampler(space, startup=20)
        resumed.replay(self.run(self.sampler(space, startup=20), 5))
        assert resumed.ask(5) is not None
        assert resumed.ask(6) is None

    def test_a_candidate_that_several_settings_stand_for_is_proposed_once(self):
        class Folded(ToySpace):
            def resolve(self, values):
                return super().resolve({"a": min(int(values["a"]), 3), "b": values["b"]})

        sampler = self.sampler(Folded(choice("a", 1, 2, 3, 4, 5), choice("b", 1, 2)), startup=20)
        assert len({one.trial.digest for one in self.run(sampler, 6)}) == 6
        assert sampler.ask(6) is None

    @pytest.mark.parametrize("size", [6, None])
    def test_settings_that_stand_for_nothing_are_never_proposed(self, size):
        class Partly(ToySpace):
            def resolve(self, values):
                return None if values["a"] < 3 else super().resolve(values)

            def size(self):
                return size

        sampler = self.sampler(Partly(choice("a", 1, 2, 3, 4, 5, ordered=True), choice("b", 1, 2)), startup=20)
        history = self.run(sampler, 6)
        assert {one.trial.parameters["a"] for one in history} == {3, 4, 5}
        assert len({one.trial.digest for one in history}) == 6
        assert sampler.ask(6) is None

    @pytest.mark.parametrize(
        "status", [TrialStatus.INVALID, TrialStatus.CRASHED, TrialStatus.LOST, TrialStatus.CANCELLED]
    )
    def test_a_trial_that_failed_is_not_proposed_again_and_the_search_goes_on(self, status):
        sampler = self.sampler(grid_180())
        history = self.run(sampler, 16, status=lambda n: status if n % 3 == 0 else TrialStatus.COMPLETE)
        assert len({one.trial.digest for one in history}) == 16

    def test_values_that_are_not_finite_do_not_stop_the_search(self):
        sampler = self.sampler(conditional())
        for number in range(16):
            proposal = sampler.ask(number)
            one = told(number, proposal)
            bad = {3: (math.nan, 1.0), 5: (0.5, math.inf), 11: (-math.inf, math.nan)}
            sampler.tell(ScoredTrial(one.trial, bad.get(number, one.values)))
        assert sampler.ask(16) is not None

    def test_nothing_but_failures_does_not_stop_the_search(self):
        for status in (TrialStatus.CRASHED, TrialStatus.INFEASIBLE):
            history = self.run(self.sampler(conditional()), 14, status=lambda number, ends=status: ends)
            assert len({one.trial.digest for one in history}) == 14

    def test_only_active_parameters_have_values_and_each_lies_in_its_domain(self):
        space = conditional()
        for one in self.run(self.sampler(space), 16):
            values = one.trial.parameters
            expected = {"method", "rate", "rank" if values["method"] == "lora" else "length"}
            assert set(values) == expected
            assert 1e-4 <= values["rate"] <= 1e-2
            assert values.get("rank", 1) in range(1, 65)
            assert values.get("length", 4) in (4, 8, 16)

    def test_a_trial_put_back_to_pending_keeps_its_place(self):
        sampler = self.sampler(grid_180())
        history = self.run(sampler, 4)
        sampler.tell(ScoredTrial(history[2].trial.model_copy(update={"status": TrialStatus.PENDING}), None))
        taken = {one.trial.digest for one in history}
        assert sampler.ask(4).candidate.digest not in taken
        sampler.tell(history[2])

    def test_a_proposal_that_was_never_told_is_made_again(self):
        sampler = self.sampler(grid_180())
        self.run(sampler, 12)
        assert sampler.ask(12) == sampler.ask(12)

    def test_asking_for_a_trial_that_was_told_is_a_mistake_of_the_caller(self):
        sampler = self.sampler(grid_180())
        self.run(sampler, 1)
        with pytest.raises(ValueError, match="trial 0 was told already"):
            sampler.ask(0)

    def test_trials_of_a_space_that_was_changed_since_are_refused(self):
        history = self.run(self.sampler(grid_180()), 3)
        changed = self.sampler(ToySpace(*grid_180().parameters, choice("e", 1, 2)))
        with pytest.raises(UserError, match=r"e is missing.*space was changed"):
            changed.replay(history)
