"""The No-U-Turn sampler over BoTorch's SAAS model, compiled once for many data sets. Imports JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from botorch.models.fully_bayesian import SaasPyroModel
from numpy.typing import NDArray
from numpyro.infer import MCMC, NUTS

Array = NDArray[np.float64]

_DEPTH = 6
"""Doublings of a trajectory, at most: BoTorch's."""
_BLOCK = 32
"""Observations are filled up to a multiple of this, since every size is compiled anew: some 10 s of a core."""


class Padded(SaasPyroModel):
    """BoTorch's SAAS model, of which some observations are only there to fill up.

    Those are independent of everything, so that they add a constant to the logarithm of the density.
    """

    def __init__(self, rows: Any, targets: Any, there: Any) -> None:
        """`rows [n, d]`, `targets [n]`, and `there [n]`, 1 for an observation and 0 for filling."""
        super().__init__()
        self.ard_num_dims = rows.shape[-1]
        self.train_X_jax, self.train_Y_jax, self.train_Yvar_jax = rows, targets[:, None], None
        self._there = there

    def sample_observations(self, mean: Any, K_noiseless: Any, noise: Any) -> None:  # noqa: N803
        """The likelihood."""
        there = self._there
        covariance = K_noiseless * there[:, None] * there[None, :] + jnp.diag(jnp.where(there > 0, noise, 1.0))
        numpyro.sample(
            "Y",
            dist.MultivariateNormal(loc=jnp.reshape(mean, (-1,)) * there, covariance_matrix=covariance),
            obs=jnp.squeeze(self.train_Y_jax, axis=-1) * there,
        )


def sample(rows: Array, targets: Array, warmup: int, samples: int, seed: int) -> dict[str, Array]:
    """Draws from the posterior of the hyper-parameters, by name; the first dimension is that of the draws.

    BoTorch's own function compiles a program for every data set, which takes ten times as long as running it.

    Args:
        rows: `[n, d]`, from 0 to 1.
        targets: `[n]`, of mean 0 and variance 1.
        warmup: Draws that are thrown away while the steps are tuned.
        samples: Draws in all.
        seed: Of the chain.
    """
    filling = -len(rows) % _BLOCK
    there = np.concatenate([np.ones(len(rows)), np.zeros(filling)])
    inputs = np.vstack([rows, np.zeros((filling, rows.shape[1]))])
    outcomes = np.concatenate([targets, np.zeros(filling)])
    found = _chain(warmup, samples)(jax.random.PRNGKey(seed), *(jnp.array(one) for one in (inputs, outcomes, there)))
    draws = {name: np.array(values, dtype=float) for name, values in found.items()}
    inverse = draws.pop("kernel_tausq")[:, None] * draws.pop("_kernel_inv_length_sq")
    return {
        "mean": draws["mean"],
        "noise": draws["noise"],
        "outputscale": draws["outputscale"],
        "lengthscale": 1.0 / np.sqrt(inverse),
    }


@lru_cache(maxsize=8)
def _chain(warmup: int, samples: int) -> Callable[..., dict[str, Any]]:
    """A compiled chain, whose data are arguments."""

    def run(key: Any, rows: Any, targets: Any, there: Any) -> dict[str, Any]:
        kernel = NUTS(Padded(rows, targets, there).sample, dense_mass=True, max_tree_depth=_DEPTH)
        chain = MCMC(kernel, num_warmup=warmup, num_samples=samples, progress_bar=False)
        chain.run(key)
        return dict(chain.get_samples())

    compiled: Callable[..., dict[str, Any]] = jax.jit(run)
    return compiled
