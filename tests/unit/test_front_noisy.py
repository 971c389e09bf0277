"""Two black boxes and more in the front sampler: BoTorch's noisy improvement over the sampler's own beliefs."""

from types import SimpleNamespace

import numpy as np
import pytest

from autopeft.domain.ports import Known
from autopeft.search import make_sampler
from autopeft.search.front import sampler as front_sampler
from autopeft.search.front.acquisition import boxes, expected_hypervolume_improvement
from autopeft.search.front.axes import Axes
from autopeft.search.front.earlier import Shifted
from autopeft.search.front.noisy import NoisyWorth, _joint
from autopeft.search.front.surrogate import Prior, fit
from autopeft.search.front.views import Point
from tests.contract.sampler_contract import OBJECTIVES, conditional, told

torch = pytest.importorskip("torch")
pytest.importorskip("botorch", reason="the extra botorch is not installed")

EXACT = Prior(noise=1e-6, noise_sd=0.01)


def point(key, row, known):
    return Point({}, key, np.array(row, dtype=float), known)


def believed(known_third=False, noise=EXACT, seed=0, count=9):
    """Beliefs about two black boxes at points of two inputs, and a third objective that is known."""
    rng = np.random.default_rng(seed)
    rows = rng.random((count, 2))
    third = rng.random(count)
    losses = np.column_stack([np.sin(3 * rows[:, 0]) + rows[:, 1], np.cos(3 * rows[:, 0]), third])
    posteriors = [fit(rows, losses[:, column], np.array([0, 1]), noise) for column in (0, 1)]
    trials = [point(index, row, (None, None, cost)) for index, (row, cost) in enumerate(zip(rows, third, strict=True))]
    asked = [point(100 + index, rng.random(2), (None, None, rng.random())) for index in range(20)]
    many = 3 if known_third else 2
    if not known_third:
        trials, asked = ([point(one.key, one.row, one.known[:2]) for one in some] for some in (trials, asked))
    held = losses[:, :many]

    def exact(points, running=(), reference=None):
        """The closed form, where the front is known and beliefs are independent."""
        mean, sd = np.zeros((2, len(points), many))
        for column, posterior in enumerate(posteriors):
            mean[:, column], sd[:, column] = posterior.predict(np.array([one.row for one in points]))
        if known_third:
            mean[:, 2] = [one.known[2] for one in points]
        return expected_hypervolume_improvement(mean, sd, boxes(held, reference))

    beliefs = SimpleNamespace(posteriors=(*posteriors, None)[:many], held=held, worth=exact)
    axes = Axes(tuple(range(many)), (1.0,) * many, (False,) * many)
    return beliefs, axes, trials, asked, held.max(axis=0) + 0.2


@pytest.mark.parametrize("after_earlier_runs", [False, True])
def test_batches_of_the_surrogate_in_torch_are_the_surrogate(after_earlier_runs):
    beliefs, _, _, asked, _ = believed()
    if after_earlier_runs:
        beliefs.posteriors = (Shifted(beliefs.posteriors[0], lambda inputs: inputs[:, 0] - 2 * inputs[:, 1]),)
    rows = np.array([one.row for one in asked]).reshape(4, 5, 2)
    mean, covariance = _joint(beliefs.posteriors[0], torch.tensor(rows))
    for index in range(4):
        own_mean, own_covariance = beliefs.posteriors[0].joint(rows[index])
        assert mean[index].numpy() == pytest.approx(own_mean, abs=1e-9)
        assert covariance[index].numpy() == pytest.approx(own_covariance, abs=1e-6)


@pytest.mark.parametrize("known_third", [False, True])
def test_without_noise_it_is_the_closed_form_also_with_an_objective_that_is_known(known_third):
    beliefs, axes, trials, asked, reference = believed(known_third)
    closed = beliefs.worth(asked, reference=reference) / np.prod(reference - beliefs.held.min(axis=0))
    found = NoisyWorth(beliefs, axes, trials, 3)(asked, [], reference)
    large = closed > 0.1 * closed.max()
    assert large.sum() >= 3
    assert found[large] == pytest.approx(closed[large], rel=0.1 if known_third else 0.05)
    assert int(np.argmax(found)) == int(np.argmax(closed))


def test_a_running_trial_makes_what_is_like_it_worth_less():
    beliefs, axes, trials, asked, reference = believed()
    worth = NoisyWorth(beliefs, axes, trials, 3)
    alone = worth(asked, [], reference)
    best = int(np.argmax(alone))
    twin = point("runs", asked[best].row + 0.01, (None, None))
    assert worth(asked, [twin], reference)[best] < 0.3 * alone[best]
    assert worth(asked, [], reference) == pytest.approx(alone)


def test_a_lucky_observation_of_the_second_black_box_does_not_hold_the_front():
    """Four repeats of one candidate, of which one was lucky in both objectives."""
    rng = np.random.default_rng(0)
    rows = np.repeat([[0.2, 0.2], [0.5, 0.5], [0.8, 0.8]], 4, axis=0)
    losses = np.column_stack([1.0 - rows[:, 0], rows[:, 0]]) + 0.01 * rng.standard_normal((12, 2))
    losses[5] -= 0.3
    noisy = Prior(noise=0.1, noise_sd=0.3)
    posteriors = [fit(rows, losses[:, column], np.array([0, 1]), noisy) for column in (0, 1)]
    trials = [point(index, row, (None, None)) for index, row in enumerate(rows)]
    held = losses.copy()
    held[:, 0] = posteriors[0].predict(rows)[0]
    reference = np.array([1.1, 1.1])
    asked = [point("new", (0.4, 0.5), (None, None))]
    means = np.array(
        [[one.predict(np.array([asked[0].row]))[position][0] for one in posteriors] for position in (0, 1)]
    )

    def closed(points, running, reference):
        return expected_hypervolume_improvement(means[:1], means[1:], boxes(held, reference))

    beliefs = SimpleNamespace(posteriors=tuple(posteriors), held=held, worth=closed)
    found = NoisyWorth(beliefs, Axes((0, 1), (1.0, 1.0), (False, False)), trials, 0)(asked, [], reference)
    by_closed_form = closed(asked, [], reference) / np.prod(reference - held.min(axis=0))
    assert found[0] > 1.5 * by_closed_form[0]


@pytest.mark.parametrize(("knows", "installed", "taken_over"), [(0, True, True), (0, False, False), (1, True, False)])
def test_it_takes_over_where_nothing_is_known_of_two_objectives_and_botorch_is_there(
    monkeypatch, knows, installed, taken_over
):
    asked = []

    class Seen(NoisyWorth):
        def __call__(self, points, running, reference):
            asked.append(len(points))
            return super().__call__(points, running, reference)

    monkeypatch.setattr(front_sampler, "NoisyWorth", Seen)
    monkeypatch.setattr(front_sampler, "missing", lambda packages: [] if installed else ["botorch"])
    known = (lambda candidate: Known({"bytes": 5.0})) if knows else None
    one = make_sampler("front", conditional(), OBJECTIVES, 0, startup_trials=4, known=known)
    for number in range(6):
        one.tell(told(number, one.ask(number)))
    assert bool(asked) == taken_over
