"""What earlier runs let the `front` sampler expect: right expectations help, wrong ones vanish."""

import numpy as np
import pytest

from autopeft.domain.start import EarlierRun, EarlierTrial
from autopeft.search.encoding import encode
from autopeft.search.front.axes import QUALITY, Axes
from autopeft.search.front.earlier import EarlierRuns, Shifted, left_out, ranking_weights
from autopeft.search.front.surrogate import fit
from autopeft.search.front.views import SpaceView
from tests.contract.sampler_contract import OBJECTIVES, grid_180

AXES = Axes((0, 1), (-1.0, 1.0), (False, True))
GROUPS = np.arange(3)


def rows_and_losses(count, seed, noise=0.05):
    rng = np.random.default_rng(seed)
    rows = rng.random((count, 3))
    return rows, truth(rows) + noise * rng.normal(size=count)


def truth(rows):
    return np.sin(4 * rows[:, 0]) + 2 * rows[:, 1] ** 2 - rows[:, 2]


def weight(own, *others):
    rows, losses = own
    processes = [fit(x, y, GROUPS, QUALITY) for x, y in others]
    return ranking_weights(processes, fit(rows, losses, GROUPS, QUALITY), rows, losses)


def dealt(rows, losses, seed=0):
    return rows, np.random.default_rng(seed).permutation(losses)


@pytest.mark.parametrize("count", [6, 16])
def test_a_run_that_ranks_own_trials_rightly_has_weight_and_a_shuffled_one_none(count):
    found = []
    for seed in range(3):
        own = rows_and_losses(count, seed)
        earlier = rows_and_losses(40, 100 + seed)
        found.append(weight(own, (earlier[0], 30 + 7 * earlier[1]), dealt(*earlier, seed)))
    right, wrong = np.mean(found, axis=0)
    print(f"{count} own trials: weights {right:.2f} and {wrong:.2f}")
    assert right > 0.6
    assert wrong < 0.1


def test_weights_fade_as_own_results_come():
    earlier = rows_and_losses(40, 50)
    alike = truth(earlier[0]) + 0.35 * np.cos(8 * earlier[0][:, 1])  # a ripple that this task has not
    means = []
    for count in (6, 40):
        found = [weight(rows_and_losses(count, seed, 0.02), (earlier[0], alike))[0] for seed in range(3)]
        means.append(np.mean(found))
    print("weights after 6 and 40 own trials:", np.round(means, 2))
    assert means[0] > 0.6
    assert means[1] < 0.05


def test_weights_do_not_depend_on_scales_and_signs_of_slopes_are_kept():
    own, earlier = rows_and_losses(10, 0), rows_and_losses(40, 1)
    plain = weight(own, earlier)
    assert weight(own, (earlier[0], 1e6 * earlier[1] - 5)) == pytest.approx(plain, abs=0.02)
    assert weight(own, (earlier[0], -earlier[1]))[0] < 0.05


def test_what_is_left_out_is_predicted_as_by_a_process_without_it():
    rows, losses = rows_and_losses(12, 3)
    own = fit(rows, losses, GROUPS, QUALITY)
    mean, sd = left_out(own, losses)
    scaled = rows * own.scales
    for index in range(12):
        kept = [other for other in range(12) if other != index]
        covariance = _kernel(scaled, scaled, own.signal)
        gram = covariance[np.ix_(kept, kept)] + (own.noise + 1e-8) * np.eye(11)
        target = (losses[kept] - own.shift) / own.spread
        cross = covariance[index, kept]
        assert mean[index] == pytest.approx(own.shift + own.spread * cross @ np.linalg.solve(gram, target), abs=1e-6)
        variance = covariance[index, index] - cross @ np.linalg.solve(gram, cross)
        assert sd[index] == pytest.approx(own.spread * np.sqrt(variance), rel=1e-3)


def _kernel(left, right, signal):
    distance = np.sqrt(((left[:, None] - right[None]) ** 2).sum(axis=2))
    root = np.sqrt(5.0) * distance
    return 1.0 + signal * (1 + root + root**2 / 3) * np.exp(-root)


def run_of(values_of, trials=40, seed=0, maximised=True):
    """An earlier run on the toy grid."""
    space, rng = grid_180(), np.random.default_rng(seed)
    found = []
    for _ in range(trials):
        values = {one.name: _any(one.domain, rng) for one in space.parameters}
        found.append(EarlierTrial(parameters=values, values=values_of(values)))
    return EarlierRun(name="old", quality="f1", maximised=maximised, trials=tuple(found))


def _any(domain, rng):
    values = getattr(domain, "values", None)
    return values[int(rng.integers(len(values)))] if values else int(rng.integers(domain.low, domain.high + 1))


def quality(values):
    return 0.1 * values["b"] + 0.3 * values["d"] + (0.5 if values["a"] == "p" else 0.0)


def expected(run, own=12):
    space = grid_180()
    view = SpaceView(space, OBJECTIVES, None)
    earlier = EarlierRuns(view, space.parameters, OBJECTIVES, [run])
    rng = np.random.default_rng(9)
    settings = [{one.name: _any(one.domain, rng) for one in space.parameters} for _ in range(own)]
    rows = np.array([view.point(encode(space.parameters, one)[0]).row for one in settings])
    losses = -np.array([quality(one) for one in settings])
    mean = earlier.expected(0, AXES, rows, losses, view.groups, QUALITY)
    others = [{"a": a, "b": b, "c": True, "d": 2} for a in "pqrst" for b in (1, 2, 4, 8)]
    places = np.array([view.point(encode(space.parameters, one)[0]).row for one in others])
    return mean, places, -np.array([quality(one) for one in others])


@pytest.mark.parametrize(("sign", "maximised"), [(1.0, True), (-1.0, False)])
def test_another_metric_on_another_scale_is_carried_over(sign, maximised):
    mean, places, wanted = expected(run_of(lambda v: {"f1": sign * (10 + 4 * quality(v))}, maximised=maximised))
    assert mean is not None
    assert np.corrcoef(mean(places), wanted)[0, 1] > 0.95
    assert np.abs(mean(places) - wanted).mean() < 0.15


def test_a_run_that_says_the_opposite_or_nothing_expects_nothing():
    assert expected(run_of(lambda v: {"f1": -quality(v)}))[0] is None
    assert expected(run_of(lambda v: {"f1": 0.5}))[0] is None
    assert expected(run_of(lambda v: {"other": quality(v)}))[0] is None
    assert expected(run_of(lambda v: {"f1": quality(v)}), own=2)[0] is None


def test_a_shifted_process_is_that_of_what_the_mean_leaves():
    rows, losses = rows_and_losses(15, 0)
    at = rows_and_losses(5, 1)[0]

    def mean(inputs):
        return 3.0 * truth(inputs) + 1.0

    rest = fit(rows, losses - mean(rows), GROUPS, QUALITY)
    shifted = Shifted(rest, mean)
    assert np.allclose(shifted.predict(at)[0], rest.predict(at)[0] + mean(at))
    assert np.allclose(shifted.joint(at)[0], shifted.predict(at)[0])
    values = truth(at) + 0.3
    assert np.allclose(shifted.given(at, values).predict(at)[0], values, atol=1e-2)
    assert shifted.given(at, values).noise == rest.noise
