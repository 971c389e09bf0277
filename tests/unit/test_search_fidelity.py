"""Stopped trials teach as low fidelity: an uncertain observation, and never a result."""

import numpy as np
import pytest

from autopeft.domain.measurements import Measurements, Rung
from autopeft.domain.results import score
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.search.asking import HistorySampler
from autopeft.search.fidelity import course, outlook
from autopeft.search.front.surrogate import fit
from autopeft.search.history import STOPPED
from tests.fakes.searches import ToySampler, ToySpace, toy_objectives

OBJECTIVES = toy_objectives()


def lines(count, seed=0):
    rng = np.random.default_rng(seed)
    then = rng.random(count)
    return then, 0.3 + 0.5 * then + 0.05 * rng.normal(size=count)


def test_the_outlook_is_the_prediction_of_a_fitted_line():
    then, ends = lines(12)
    pairs = [({10: (x, 5.0 + at)}, (y, 5.0 + at)) for at, (x, y) in enumerate(zip(then, ends, strict=True))]
    found = outlook({10: (0.4, 7.0)}, pairs)
    slope, offset = np.polyfit(then, ends, 1)
    assert found.values == pytest.approx((offset + slope * 0.4, 7.0))
    design = np.column_stack([np.ones(12), then])
    rest = ends - design @ [offset, slope]
    at = np.array([1.0, 0.4])
    variance = rest @ rest / 10 * (1 + at @ np.linalg.inv(design.T @ design) @ at)
    assert found.variance == pytest.approx((variance, 0.0), abs=1e-12)


def test_a_rung_that_says_nothing_leaves_the_mean_of_the_ends_and_their_variance():
    ends = np.array([0.1, 0.5, 0.9, 0.7, 0.4, 0.8])
    found = outlook({10: (0.5,)}, [({10: (0.2,)}, (end,)) for end in ends])
    assert found.values == pytest.approx((ends.mean(),))
    assert found.variance[0] >= ends.var(ddof=1)
    backwards = outlook({10: (0.0,)}, [({10: (1.0 - end,)}, (end,)) for end in ends])
    assert backwards.values == pytest.approx((ends.mean(),)), "who was behind is not expected ahead"


def test_nothing_is_said_by_too_few_or_of_another_rung():
    then, ends = lines(9)
    pairs = [({10: (x,)}, (y,)) for x, y in zip(then, ends, strict=True)]
    assert outlook({10: (0.4,)}, pairs[:4]) is None
    assert outlook({20: (0.4,)}, pairs) is None
    assert outlook({}, pairs) is None


def test_known_noise_weighs_an_observation_as_little_as_it_is_worth():
    rng = np.random.default_rng(1)
    inputs, groups = rng.random((20, 2)), np.array([0, 1])
    values = np.sin(5 * inputs[:, 0]) + 0.01 * rng.normal(size=20)
    plain = fit(inputs, values, groups)
    same = fit(inputs, values, groups, variances=np.zeros(20))
    grid = rng.random((30, 2))
    assert np.allclose(plain.predict(grid), same.predict(grid))
    wrong = np.concatenate([values, [50.0]])
    more = np.vstack([inputs, [[0.5, 0.5]]])
    # In units of a spread that the wrong value widens: it is known to be worth nothing.
    mean, _ = fit(more, wrong, groups, variances=np.array([0.0] * 20 + [1e8])).predict(inputs)
    believed, _ = fit(more, wrong, groups).predict(inputs)
    assert np.abs(mean - values).max() < 0.5 * np.abs(believed - values).max()


def trial(number, status, quality):
    proposal = ToySampler(1).ask(number)
    rungs = [Rung(step=5, planned_steps=10, quality={"accuracy": quality / 2}, train_loss=1.0, train_s=1.0)]
    if status is TrialStatus.COMPLETE:
        rungs.append(rungs[0].model_copy(update={"step": 10, "quality": {"accuracy": quality}}))
    measured = Measurements(
        quality=rungs[-1].quality, rungs=tuple(rungs), train_peak={"live_bytes": 100 + number, "source": "tracked"}
    )
    return Trial(
        number=number,
        candidate=proposal.candidate,
        parameters=proposal.parameters,
        seed=0,
        status=status,
        measurements=measured,
    )


def test_samplers_see_a_stopped_trial_behind_all_that_completed_at_where_it_was_heading():
    seen = []

    class Noting:
        def __init__(self, seed):
            from optuna.samplers import RandomSampler

            self._random = RandomSampler(seed=seed)

        def infer_relative_search_space(self, study, trial):
            seen[:] = study.get_trials(deepcopy=False)
            return {}

        def __getattr__(self, name):
            return getattr(self._random, name)

    sampler = HistorySampler(Noting, ToySpace(), OBJECTIVES, 0, tries=1)
    for number in range(6):
        sampler.tell(score(trial(number, TrialStatus.COMPLETE, 0.5 + 0.05 * number), OBJECTIVES))
    stopped = score(trial(6, TrialStatus.STOPPED_EARLY, 0.3), OBJECTIVES)
    assert stopped.values is None
    sampler.tell(stopped)
    sampler.ask(7)
    one = seen[6]
    assert one.values == pytest.approx([0.3, 106])
    assert max(one.constraints.values()) > 0
    assert one.system_attrs[STOPPED] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert all(max(other.constraints.values()) < 0 for other in seen[:6])
    assert course(trial(6, TrialStatus.STOPPED_EARLY, 0.3), OBJECTIVES) == {5: (0.15, 106.0)}
