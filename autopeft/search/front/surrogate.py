"""A Gaussian process with learned noise, small and fast: what a number is likely to be at candidates not yet tried."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

ROOT5 = math.sqrt(5.0)
_JITTER = 1e-8
_STEPS = 40
"""L-BFGS iterations of one start, and the change of the loss that ends it: hyper-parameters need no more digits."""
_TOLERANCE = 1e-5
_ENOUGH = 120
"""Observations that hyper-parameters are fitted to; the posterior has all."""
CONSTANT = 1.0
"""Variance of the mean: outputs are standardised, but the prior mean far from all data need not be their mean."""


@dataclass(frozen=True)
class Prior:
    """Log-normal priors of the hyper-parameters; outputs have variance 1, inputs a range of about 1.

    Distances grow with the root of the number of groups, so the median length-scale does too (the dimensionality-scaled
    prior of Hvarfner et al., ICML 2024, with a lower median: groups here are few and chosen).
    """

    length: float = 0.6
    """Median length-scale divided by the root of the number of groups."""
    length_sd: float = 0.9
    noise: float = 0.03
    """Median of the noise variance."""
    noise_sd: float = 1.2
    signal: float = 2.0
    """Median of the variance of the Matérn part."""
    signal_sd: float = 0.6
    linear: float = 0.0
    """Variance of every input's linear effect; 0 leaves the linear part out."""


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters, in units of standardised observations."""

    lengths: tuple[float, ...]
    """Per group."""
    signal: float
    noise: float


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known after some observations. Immutable; `given` conditions it on more."""

    inputs: Array
    """`[n, d]`, scaled by the length-scales, for the linear part unscaled beside them."""
    plain: Array
    """`[n, d]`, as they came."""
    lower: Array
    """`[n, n]`: Cholesky factor of the covariance of the observations."""
    weights: Array
    """`[n]`: inverse covariance times standardised observations."""
    scales: Array
    """`[d]`: what inputs are multiplied by."""
    signal: float
    noise: float
    """Variance of an observation's noise, in standardised units."""
    linear: float
    shift: float
    spread: float
    """Observations are standardised as (y - shift) / spread."""

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the noiseless value, `inputs [N, d]` -> `[N]`, `[N]`."""
        cross, half = self._cross(inputs)
        variance = self.signal + CONSTANT + self.linear * np.sum(inputs**2, axis=1) - np.sum(half**2, axis=0)
        return (
            self.shift + self.spread * (cross @ self.weights),
            self.spread * np.sqrt(np.maximum(variance, 1e-12)),
        )

    def joint(self, inputs: Array) -> tuple[Array, Array]:
        """Mean `[N]` and covariance `[N, N]` of the noiseless values."""
        cross, half = self._cross(inputs)
        scaled = inputs * self.scales
        prior = _matern(_distances(scaled, scaled), self.signal) + CONSTANT + self.linear * (inputs @ inputs.T)
        return self.shift + self.spread * (cross @ self.weights), self.spread**2 * (prior - half.T @ half)

    def given(self, inputs: Array, values: Array) -> Posterior:
        """Conditioned on noiseless `values [k]` at `inputs [k, d]` as well; the hyper-parameters stay."""
        cross, half = self._cross(inputs)
        scaled = inputs * self.scales
        own = _matern(_distances(scaled, scaled), self.signal) + CONSTANT + self.linear * (inputs @ inputs.T)
        corner = np.linalg.cholesky(own - half.T @ half + 1e-6 * np.eye(len(inputs)))
        n, k = len(self.inputs), len(inputs)
        lower = np.zeros((n + k, n + k))
        lower[:n, :n], lower[n:, :n], lower[n:, n:] = self.lower, half.T, corner
        # K w = y has been solved for the first n; the block form gives the rest.
        extra = _solve_spd(corner, (values - self.shift) / self.spread - cross @ self.weights)
        back = solve_triangular(self.lower, half @ extra, lower=True, trans=1)
        return Posterior(
            np.vstack([self.inputs, scaled]),
            np.vstack([self.plain, inputs]),
            lower,
            np.concatenate([self.weights - back, extra]),
            self.scales,
            self.signal,
            self.noise,
            self.linear,
            self.shift,
            self.spread,
        )

    def _cross(self, inputs: Array) -> tuple[Array, Array]:
        scaled = inputs * self.scales
        cross = _matern(_distances(scaled, self.inputs), self.signal) + CONSTANT
        if self.linear:
            cross += self.linear * (inputs @ self.plain.T)
        return cross, solve_triangular(self.lower, cross.T, lower=True)


def fit(
    inputs: Array,
    values: Array,
    groups: NDArray[np.int_],
    prior: Prior | None = None,
    variances: Array | None = None,
) -> Posterior:
    """The posterior under the most likely hyper-parameters (maximum a posteriori).

    The covariance of two observations is

        k(x, x') = c + b x·x' + s (1 + √5 r + 5 r²/3) exp(-√5 r) + n [x is x'],   r² = Σ_g |x_g - x'_g|² / l_g²

    (Matérn 5/2 with a length-scale per group of inputs, as one for all layer bits).

    Args:
        inputs: `[n, d]`, each of a range of about 1.
        values: `[n]`, finite, at least one.
        groups: `[d]`, the group of each input, counted from 0.
        prior: What is believed of the hyper-parameters before any data.
        variances: `[n]`: known noise of single observations, which is added to the learned noise.
    """
    return condition(most_likely(inputs, values, groups, prior, variances), inputs, values, groups, prior, variances)


def most_likely(
    inputs: Array,
    values: Array,
    groups: NDArray[np.int_],
    prior: Prior | None = None,
    variances: Array | None = None,
) -> Hyper:
    """The hyper-parameters of `fit`.

    The negative logarithm of the marginal likelihood times the priors is minimised over log s, log n and log l_g by
    L-BFGS with its exact gradient (Rasmussen and Williams 2006, eq. 5.9), from two fixed starts: the medians of the
    priors, and shorter length-scales with less noise. So a data set has one answer.
    """
    prior = prior or Prior()
    shift, spread = _standard(values)
    count = int(groups.max()) + 1 if len(groups) else 0
    center = np.array(
        [math.log(prior.signal), math.log(prior.noise), *[math.log(prior.length * math.sqrt(max(1, count)))] * count]
    )
    width = np.array([prior.signal_sd, prior.noise_sd, *[prior.length_sd] * count])
    some = np.linspace(0, len(inputs) - 1, min(_ENOUGH, len(inputs))).astype(int)
    few_inputs, few_targets = inputs[some], (values[some] - shift) / spread
    fixed = _fixed(few_inputs, prior, None if variances is None else variances[some] / spread**2)
    # The spread of standardised data bounds what they can say: noise below 1e-6 or above 4 is not believed.
    bounds = [(-4.0, 3.0), (math.log(1e-6), math.log(4.0)), *[(math.log(0.05), math.log(50.0))] * count]

    def loss(log: Array) -> tuple[float, Array]:
        value, gradient = _loss(log, few_inputs, few_targets, groups, fixed)
        away = (log - center) / width
        return value + 0.5 * float(away @ away), gradient + away / width

    second = center + np.array([0.5, -1.5, *[-0.8] * count])
    found = [
        minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS, "ftol": _TOLERANCE}
        )
        for start in (center, second)
    ]
    best = min(found, key=lambda one: float(one.fun)).x
    return Hyper(tuple(np.exp(best[2:]).tolist()), math.exp(best[0]), math.exp(best[1]))


def condition(
    hyper: Hyper,
    inputs: Array,
    values: Array,
    groups: NDArray[np.int_],
    prior: Prior | None = None,
    variances: Array | None = None,
) -> Posterior:
    """The posterior of `fit` under given hyper-parameters; arguments as there."""
    prior = prior or Prior()
    shift, spread = _standard(values)
    scales = (1.0 / np.array(hyper.lengths))[groups] if hyper.lengths else np.zeros(0)
    scaled = inputs * scales
    covariance = _fixed(inputs, prior, None if variances is None else variances / spread**2)
    covariance += _matern(_distances(scaled, scaled), hyper.signal)
    covariance[np.diag_indices_from(covariance)] += hyper.noise + _JITTER
    lower = np.asarray(np.linalg.cholesky(covariance), dtype=float)
    weights = _solve_spd(lower, (values - shift) / spread)
    return Posterior(scaled, inputs, lower, weights, scales, hyper.signal, hyper.noise, prior.linear, shift, spread)


def _standard(values: Array) -> tuple[float, float]:
    """Shift and spread that standardise these values; a spread of 1 where they are all the same."""
    shift = float(values.mean())
    spread = float(values.std()) if len(values) > 1 else 0.0
    return shift, spread if spread > 1e-12 * max(1.0, abs(shift)) else 1.0


def _fixed(inputs: Array, prior: Prior, variances: Array | None) -> Array:
    """`[n, n]`: the part of the covariance that no hyper-parameter changes."""
    fixed = np.full((len(inputs),) * 2, CONSTANT)
    if prior.linear:
        fixed += prior.linear * (inputs @ inputs.T)
    if variances is not None:
        fixed[np.diag_indices_from(fixed)] += variances
    return fixed


def _loss(log: Array, inputs: Array, target: Array, groups: NDArray[np.int_], fixed: Array) -> tuple[float, Array]:
    """Negative log marginal likelihood and its gradient in the logarithms of signal, noise and length-scales."""
    n, count = len(target), len(log) - 2
    signal, noise = math.exp(log[0]), math.exp(log[1])
    scaled = inputs * np.exp(-log[2:])[groups] if count else inputs
    distance = _distances(scaled, scaled)
    decay = np.exp(-ROOT5 * distance)
    kernel = signal * (1.0 + ROOT5 * distance + (5.0 / 3.0) * distance**2) * decay
    covariance = fixed + kernel
    covariance[np.diag_indices(n)] += noise + _JITTER
    lower, failed = lapack.dpotrf(covariance, lower=1, clean=1)
    if failed:
        return 1e10, np.zeros_like(log)
    half_inverse, _ = lapack.dpotri(lower, lower=1)  # above the diagonal it is 0, as in `lower`
    inverse = half_inverse + half_inverse.T
    inverse[np.diag_indices(n)] *= 0.5
    weights = inverse @ target
    value = 0.5 * float(target @ weights) + float(np.log(np.diag(lower)).sum())
    outer = inverse - np.outer(weights, weights)
    gradient = np.empty_like(log)
    gradient[0] = 0.5 * float(np.sum(outer * kernel))
    gradient[1] = 0.5 * noise * float(np.trace(outer))
    if count:
        # dk/dlog l_g = (5/3) s (1 + √5 r) exp(-√5 r) |x_g - x'_g|²/l_g²; sums over pairs by one matrix product
        slope = outer * ((5.0 / 3.0) * signal * (1.0 + ROOT5 * distance) * decay)
        per_input = slope.sum(axis=1) @ scaled**2 - np.einsum("nd,nd->d", scaled, slope @ scaled)
        gradient[2:] = np.bincount(groups, weights=per_input, minlength=count)
    return value, gradient


def _distances(left: Array, right: Array) -> Array:
    """Euclidean distances, `[n, d]`, `[k, d]` -> `[n, k]`."""
    squared = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1)[None, :] - 2.0 * (left @ right.T)
    return np.sqrt(np.maximum(squared, 0.0))


def _matern(distance: Array, signal: float) -> Array:
    return signal * (1.0 + ROOT5 * distance + (5.0 / 3.0) * distance**2) * np.exp(-ROOT5 * distance)


def _solve_spd(lower: NDArray[np.floating[Any]], right: Array) -> Array:
    return solve_triangular(lower, solve_triangular(lower, right, lower=True), lower=True, trans=1)
