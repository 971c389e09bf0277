"""Gaussian processes with the sparse axis-aligned subspace prior (SAAS), fitted by BoTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autopeft.search.extras import calm

Array = NDArray[np.float64]


class Fit(Protocol):
    """A way to fit one surrogate."""

    def __call__(self, rows: Array, targets: Array, seed: int) -> Any:
        """A fitted BoTorch model with one output.

        Args:
            rows: `[n, d]`, from 0 to 1.
            targets: `[n]`, of mean 0 and variance 1.
            seed: Of every draw.
        """
        ...


@dataclass(frozen=True)
class Nuts:
    """SAAS with every hyper-parameter integrated out: Eriksson and Jankowiak, UAI 2021 (arXiv:2103.00349), section 4.

    k(x, x') = s² Matérn5/2(√Σ_i r_i (x_i - x'_i)²), with τ ~ HalfCauchy(0.1) and r_i ~ HalfCauchy(τ): most inverse
    squared length-scales are near 0, a few are free. The No-U-Turn sampler draws (r, τ, s², noise, mean); the surrogate
    is the mixture over the draws that are kept. The numbers are those of the released AutoPEFT code.
    """

    warmup: int = 128
    samples: int = 64
    thinning: int = 4
    """Every so many samples one is kept: 16 of 64."""

    def __call__(self, rows: Array, targets: Array, seed: int) -> Any:
        import torch
        from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP

        from autopeft.search.paper.nuts import sample

        inputs, outcomes = torch.tensor(rows), torch.tensor(targets[:, None])
        with calm(seed):
            model = SaasFullyBayesianSingleTaskGP(inputs, outcomes)
            found = sample(rows, targets, self.warmup, self.samples, seed)
            kept = {name: torch.tensor(values[:: self.thinning]).to(inputs) for name, values in found.items()}
            model.train()
            model.load_mcmc_samples(kept)
        return model.eval()


@dataclass(frozen=True)
class Map:
    """The same prior with the most likely hyper-parameters, for several given strengths τ of the sparsity.

    One Gaussian process per τ, at evenly spread quantiles of its prior; the surrogate is their mixture. Not the paper's
    surrogate, but some ten times faster.
    """

    taus: int = 4

    def __call__(self, rows: Array, targets: Array, seed: int) -> Any:
        import torch
        from botorch.fit import fit_gpytorch_mll
        from botorch.models.map_saas import EnsembleMapSaasSingleTaskGP
        from gpytorch.mlls import ExactMarginalLogLikelihood

        # Quantile function of the half-Cauchy distribution, HalfCauchy(0.1).
        places = [(index + 0.5) / self.taus for index in range(self.taus)]
        taus = torch.tensor([0.1 * math.tan(0.5 * math.pi * place) for place in places], dtype=torch.float64)
        inputs, outcomes = torch.tensor(rows), torch.tensor(targets[:, None])
        with calm(seed):  # a fit that fails starts again from a draw
            model = EnsembleMapSaasSingleTaskGP(inputs, outcomes, num_taus=self.taus, taus=taus, outcome_transform=None)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model


class NoisyImprovement:
    """Noisy expected hypervolume improvement: Daulton, Balandat and Bakshy, NeurIPS 2021 (arXiv:2105.08195), eq. 3.

    NEHVI(x) = E_f[ HVI(f(x) | front of {f(x_1), …, f(x_n)}) ], f drawn jointly at the observed points x_i, the
    pending ones and x: nobody knows which of the noisy observations make the front. By quasi-Monte Carlo, over every
    model of the mixtures. Everything is to be maximised here. Of one objective it is the noisy expected improvement.
    """

    def __init__(self, models: Sequence[Any], rows: Array, reference: Array, draws: int, seed: int) -> None:
        """`models`: one per objective; `rows [n, d]`: observed points; `reference [m]`; `draws`: of f per model."""
        import torch
        from botorch.acquisition.monte_carlo import qNoisyExpectedImprovement
        from botorch.acquisition.multi_objective.monte_carlo import qNoisyExpectedHypervolumeImprovement
        from botorch.models import ModelListGP
        from botorch.sampling import SobolQMCNormalSampler

        self._seed = seed
        sampler, observed = SobolQMCNormalSampler(torch.Size([draws]), seed=seed), torch.tensor(rows)
        with calm(seed):
            if len(models) == 1:
                self._function: Any = qNoisyExpectedImprovement(
                    models[0], observed, sampler=sampler, prune_baseline=True, marginalize_dim=MIXTURE
                )
                return
            self._function = qNoisyExpectedHypervolumeImprovement(
                ModelListGP(*models),
                torch.tensor(reference),
                observed,
                sampler=sampler,
                prune_baseline=True,
                marginalize_dim=MIXTURE,
            )

    def wait_for(self, rows: Array) -> None:
        """Points `[k, d]` that will be observed, in place of earlier ones."""
        import torch

        with calm(self._seed):
            self._function.set_X_pending(torch.tensor(rows) if len(rows) else None)

    def __call__(self, rows: Array) -> Array:
        """The improvement of each of `rows [k, d]` alone, `[k]`."""
        import torch

        with calm(self._seed), torch.no_grad():
            found = [self._function(some[:, None, :]) for some in torch.tensor(rows).split(_AT_ONCE)]
        return np.asarray(torch.cat(found).numpy(), dtype=float)


MIXTURE = -3
"""The dimension of a batch along which BoTorch keeps the models of a mixture."""
_AT_ONCE = 256
"""Points of which the improvement is computed together: memory grows with draws, models and cells of the front."""
