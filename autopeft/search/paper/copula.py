"""The copula transform of outcomes: only their order counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

Array = NDArray[np.float64]


def normal_scores(values: Array) -> Array:
    """Outcomes as quantiles of a normal distribution, `[n]` -> `[n]`, with mean 0 and variance 1 (all equal: 0).

    z_i = Φ⁻¹((r_i - 1/2) / n), r_i the rank of value i (Wilson and Ghahramani, NeurIPS 2010, "Copula processes"; as a
    transform of outcomes in Bayesian optimisation: Eriksson and Poloczek, AISTATS 2021, section 3). Equal values share
    the mean of their ranks. No end is cut off, since the ends are what is searched for.
    """
    scores = ndtri((rankdata(values, method="average") - 0.5) / len(values))
    spread = float(scores.std())
    return np.asarray(scores / spread if spread > 0 else scores, dtype=float)
