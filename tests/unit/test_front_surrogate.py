"""The Gaussian process against its definition, and what it learns."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from autopeft.search.front import surrogate
from autopeft.search.front.surrogate import Prior, fit

GROUPS = np.array([0, 1, 1, 2])


def sample(count, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    inputs = rng.random((count, 4))
    return inputs, np.sin(4 * inputs[:, 0]) + inputs[:, 1] * inputs[:, 2] + noise * rng.standard_normal(count)


def covariance(left, right, scales, signal, linear):
    """k of the module's docstring, pair by pair."""
    found = np.empty((len(left), len(right)))
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            r = float(np.sqrt(np.sum(((one - other) * scales) ** 2)))
            matern = (1 + 5**0.5 * r + 5 * r * r / 3) * np.exp(-(5**0.5) * r)
            found[i, j] = 1.0 + linear * float(one @ other) + signal * matern
    return found


@pytest.mark.parametrize("linear", [0.0, 0.7])
def test_the_posterior_is_the_textbook_formula(linear):
    inputs, values = sample(15)
    told = fit(inputs, values, GROUPS, Prior(linear=linear))
    points = np.random.default_rng(1).random((6, 4))
    target = (values - values.mean()) / values.std()
    own = covariance(inputs, inputs, told.scales, told.signal, linear) + told.noise * np.eye(15)
    cross = covariance(points, inputs, told.scales, told.signal, linear)
    prior = covariance(points, points, told.scales, told.signal, linear)
    mean = values.mean() + values.std() * cross @ np.linalg.solve(own, target)
    spread = values.std() ** 2 * (prior - cross @ np.linalg.solve(own, cross.T))
    found, sd = told.predict(points)
    assert found == pytest.approx(mean, abs=1e-5)
    assert sd == pytest.approx(np.sqrt(np.diag(spread)), rel=1e-4)
    assert told.joint(points)[1] == pytest.approx(spread, abs=1e-5)


def test_the_gradient_of_the_likelihood_is_exact():
    inputs, values = sample(25)
    fixed = np.ones((25, 25)) + 0.3 * inputs @ inputs.T
    target = (values - values.mean()) / values.std()

    def value(log):
        return surrogate._loss(log, inputs, target, GROUPS, fixed)[0]

    for log in ([0.1, -3.0, 0.2, -0.3, 0.4], [-1.0, -0.5, 1.0, 1.0, -1.0]):
        found = surrogate._loss(np.array(log), inputs, target, GROUPS, fixed)[1]
        assert found == pytest.approx(approx_fprime(np.array(log), value, 1e-6), rel=1e-4, abs=1e-4)


def test_values_that_are_given_are_believed_and_nothing_else_changes():
    inputs, values = sample(20)
    told = fit(inputs, values, GROUPS)
    points = np.random.default_rng(2).random((5, 4))
    more = told.given(points[:2], np.array([3.0, -2.0]))
    assert more.predict(points[:2])[0] == pytest.approx([3.0, -2.0], abs=1e-3)
    mean, spread = told.joint(points)
    gain = spread[2:, :2] @ np.linalg.inv(spread[:2, :2])
    assert more.predict(points[2:])[0] == pytest.approx(mean[2:] + gain @ (np.array([3.0, -2.0]) - mean[:2]), abs=1e-3)
    left = np.diag(spread[2:, 2:] - gain @ spread[:2, 2:])
    assert more.predict(points[2:])[1] == pytest.approx(np.sqrt(left), rel=1e-2)


def test_noise_and_relevance_are_learned():
    inputs, values = sample(120, noise=0.2)
    told = fit(inputs, values, GROUPS)
    assert told.spread * told.noise**0.5 == pytest.approx(0.2, rel=0.25)
    assert told.scales[0] > 3 * told.scales[3]  # the last input does nothing
    clean = fit(*sample(60, noise=0.0), GROUPS)
    assert clean.spread * clean.noise**0.5 < 0.03


def test_repeats_of_one_candidate_pull_the_mean_to_their_average():
    inputs, values = sample(30, noise=0.2)
    repeated = np.vstack([inputs, np.repeat(inputs[:1], 8, axis=0)])
    told = fit(repeated, np.append(values, np.full(8, 1.5)), GROUPS)
    mean, sd = told.predict(inputs[:2])
    assert abs(mean[0] - 1.5) < 0.15
    assert sd[0] < 0.6 * sd[1]


def test_units_of_the_values_do_not_matter():
    inputs, values = sample(25)
    points = np.random.default_rng(3).random((5, 4))
    mean, sd = fit(inputs, values, GROUPS).predict(points)
    moved, wide = fit(inputs, 1e6 * values - 5e7, GROUPS).predict(points)
    assert moved == pytest.approx(1e6 * mean - 5e7, rel=1e-6)
    assert wide == pytest.approx(1e6 * sd, rel=1e-6)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.1, 0.2]])
def test_few_or_equal_values_are_no_trouble(values):
    inputs = np.random.default_rng(4).random((len(values), 4))
    mean, sd = fit(inputs, np.array(values), GROUPS).predict(inputs)
    assert np.all(np.isfinite(mean))
    assert np.all(sd > 0)
    assert mean == pytest.approx(values, abs=0.05)


def test_a_space_without_inputs_has_a_mean():
    told = fit(np.empty((3, 0)), np.array([1.0, 2.0, 3.0]), np.empty(0, dtype=int))
    assert told.predict(np.empty((1, 0)))[0] == pytest.approx([2.0], abs=0.2)


def test_costs_are_learned_from_few_trials_where_they_are_products():
    rng = np.random.default_rng(5)
    sizes = rng.integers(0, 6, (40, 3))
    cost = np.log(2.0 ** sizes.sum(axis=1) * 1e6)
    inputs = sizes / 5.0
    told = fit(inputs[:12], cost[:12], np.arange(3), Prior(length=1.0, noise=1e-4, noise_sd=1.5, linear=1.0))
    assert np.abs(told.predict(inputs[12:])[0] - cost[12:]).max() < 0.2
