"""Hyper-parameters that are not fitted at every question: what they are fitted to, and that nothing else matters."""

import numpy as np

from autopeft.search.front import fits
from autopeft.search.front.fits import Fits, share
from autopeft.search.front.surrogate import Prior, condition, most_likely

GROUPS = np.array([0, 1])


def observations(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    inputs = rng.random((count, 2))
    return inputs, np.sin(6 * inputs[:, 0]) + 0.1 * rng.standard_normal(count)


def test_most_observations_count_at_any_time() -> None:
    counts = range(1, 3000)
    assert all(0.89 * count - 1 < share(count) <= count for count in counts)
    assert all(share(count) == count for count in range(17))
    assert all(share(count) <= share(count + 1) for count in counts)
    assert len({share(count) for count in range(100, 1000)}) < 25


def test_a_posterior_has_all_observations_under_hyper_parameters_of_the_first() -> None:
    inputs, values = observations(55)
    first = share(50)
    assert first < 55
    hyper = most_likely(inputs[:first], values[:first], GROUPS)
    found = Fits().posterior(inputs, values, GROUPS, Prior())
    expected = condition(hyper, inputs, values, GROUPS)
    np.testing.assert_array_equal(found.predict(inputs)[0], expected.predict(inputs)[0])
    assert len(found.inputs) == 55


def test_what_was_asked_before_does_not_matter(monkeypatch) -> None:
    inputs, values = observations(60)
    used, calls = Fits(), []
    fitted = fits.most_likely
    monkeypatch.setattr(fits, "most_likely", lambda *data: calls.append(len(data[0])) or fitted(*data))
    asked = range(20, 61)
    seen = [used.posterior(inputs[:count], values[:count], GROUPS, Prior()) for count in asked]
    assert calls == sorted({share(count) for count in asked})
    for count, posterior in zip(asked, seen, strict=True):
        afresh = Fits().posterior(inputs[:count], values[:count], GROUPS, Prior())
        np.testing.assert_array_equal(afresh.predict(inputs)[0], posterior.predict(inputs)[0])


def test_uncertain_observations_are_counted_apart(monkeypatch) -> None:
    inputs, values = observations(60)
    variances = np.r_[np.zeros(30), np.full(30, 0.2)]
    data: list[tuple[np.ndarray, ...]] = []
    fitted = fits.most_likely
    monkeypatch.setattr(fits, "most_likely", lambda *given: data.append(given) or fitted(*given))
    Fits().posterior(inputs, values, GROUPS, Prior(), variances, exact=30)
    rows = np.r_[: share(30), 30 : 30 + share(30)]
    np.testing.assert_array_equal(data[0][0], inputs[rows])
    np.testing.assert_array_equal(data[0][4], variances[rows])
