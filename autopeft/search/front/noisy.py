"""Several black boxes: noisy expected hypervolume improvement by BoTorch, over the sampler's own beliefs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.search.extras import calm
from autopeft.search.front.axes import Axes
from autopeft.search.front.beliefs import Beliefs
from autopeft.search.front.earlier import Belief, Shifted
from autopeft.search.front.surrogate import CONSTANT, ROOT5, Posterior
from autopeft.search.front.views import Point

Array = NDArray[np.float64]

_DRAWS = 128
"""Quasi-random draws of all black boxes; of three objectives and more a quarter: each needs a box decomposition."""
_SHORT = 64
"""Points that are looked at closely: those of the largest improvement by the closed form, which takes no draws."""


class NoisyWorth:
    """Takes the place of `Beliefs.worth`: qLogNEHVI of Ament et al., NeurIPS 2023 (arXiv:2310.20708), appendix A.

    What the front is, is not known where several objectives are noisy. So all black boxes are drawn together at the
    observed, the running and the new points, and the improvements beyond the front of each draw are averaged. Every
    black box has the Gaussian process that the sampler has of it; what is known is put in as it is.

    Of many points, only the best by the closed form are looked at; it errs by what noise of the others than the first
    objective it takes for the truth, which is little beside the differences within a pool.
    """

    def __init__(self, beliefs: Beliefs, axes: Axes, trials: Sequence[Point], seed: int) -> None:
        """`trials`: those that were observed, which the front is made of."""
        self._beliefs = beliefs
        self._axes = axes
        self._trials = trials
        self._seed = seed
        self._learned = [column for column, one in enumerate(beliefs.posteriors) if one is not None]
        self._posteriors = [one for one in beliefs.posteriors if one is not None]
        self._prepared: tuple[tuple[Any, ...], Any] | None = None

    def __call__(self, points: Sequence[Point], running: Sequence[Point], reference: Array) -> Array:
        """Expected hypervolume improvement, `[points]`, as a share of the box between the best and the reference.

        0 for points that are not looked at.
        """
        import torch

        key = (tuple(point.key for point in running), reference.tobytes())
        with calm(self._seed), torch.no_grad():
            if self._prepared is None or self._prepared[0] != key:
                self._prepared = (key, self._function(running, reference))
            short = np.argsort(-self._beliefs.worth(points, running, reference), kind="stable")[:_SHORT]
            logs = self._prepared[1](torch.tensor(self._rows([points[index] for index in short]))[:, None, :])
        worth = np.zeros(len(points))
        worth[short] = np.exp(np.asarray(logs.numpy(), dtype=float))
        return worth

    def _function(self, running: Sequence[Point], reference: Array) -> Any:
        import torch
        from botorch.acquisition.multi_objective import logei
        from botorch.acquisition.multi_objective.objective import GenericMCMultiOutputObjective
        from botorch.sampling import SobolQMCNormalSampler

        # BoTorch would compile a C++ extension for the machine it is on: half a minute, and other last digits.
        logei._load_attempted = True
        count = len(reference)
        best = self._beliefs.held.min(axis=0)
        span = np.where(reference > best, reference - best, 1.0)
        wide, level = torch.tensor(span), torch.tensor(reference)

        def gains(samples: Any, X: Any) -> Any:  # noqa: N803
            """Losses as shares of the box below the reference; known ones from the last columns of the inputs."""
            known = X[..., -count:].expand(*samples.shape[:-1], count)
            losses = known.clone()
            losses[..., self._learned] = torch.where(
                torch.isnan(known[..., self._learned]), samples, known[..., self._learned]
            )
            return (level - losses) / wide

        return logei.qLogNoisyExpectedHypervolumeImprovement(
            model=_model(self._posteriors, count),
            ref_point=torch.zeros(count, dtype=torch.float64),
            X_baseline=torch.tensor(self._rows(self._trials)),
            X_pending=torch.tensor(self._rows(running)) if running else None,
            sampler=SobolQMCNormalSampler(torch.Size([_DRAWS if count < 3 else _DRAWS // 4]), seed=self._seed % 2**31),
            objective=GenericMCMultiOutputObjective(gains),
            prune_baseline=True,
            cache_root=False,
        )

    def _rows(self, points: Sequence[Point]) -> Array:
        """`[points, d + m]`: inputs, then losses where they are known and NaN where they are not."""
        known = np.full((len(points), len(self._axes.order)), np.nan)
        for column, index in enumerate(self._axes.order):
            for row, point in enumerate(points):
                value = point.known[index]
                if value is not None:
                    known[row, column] = self._axes.losses(index, [value])[0]
        return np.hstack([np.array([point.row for point in points]), known])


def _model(posteriors: Sequence[Belief], known: int) -> Any:
    """The posteriors as one BoTorch model with an output each, over inputs of which the last `known` are left out."""
    import torch
    from botorch.models.model import Model
    from botorch.posteriors import GPyTorchPosterior
    from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal

    class Surrogates(Model):
        num_outputs = len(posteriors)
        batch_shape = torch.Size()

        def posterior(self, X: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N803
            inputs = X[..., :-known]
            found = [MultivariateNormal(*_joint(one, inputs)) for one in posteriors]
            if len(found) == 1:
                return GPyTorchPosterior(found[0])
            return GPyTorchPosterior(MultitaskMultivariateNormal.from_independent_mvns(found))

    return Surrogates()


def _joint(belief: Belief, inputs: Any) -> tuple[Any, Any]:
    """`Belief.joint` for batches: `inputs [..., q, d]` -> mean `[..., q]` and covariance `[..., q, q]`."""
    import torch

    if isinstance(belief, Shifted):
        mean, covariance = _joint(belief.rest, inputs)
        flat = np.asarray(inputs.reshape(-1, inputs.shape[-1]).numpy(), dtype=float)
        return mean + torch.tensor(belief.mean(flat)).reshape(mean.shape), covariance
    assert isinstance(belief, Posterior)
    posterior = belief
    scales, plain = torch.tensor(posterior.scales), torch.tensor(posterior.plain)
    scaled, own = inputs * scales, torch.tensor(posterior.inputs)
    cross = _matern(scaled, own, posterior.signal) + CONSTANT + posterior.linear * (inputs @ plain.T)
    half = torch.linalg.solve_triangular(torch.tensor(posterior.lower), cross.mT, upper=False)
    prior = _matern(scaled, scaled, posterior.signal) + CONSTANT + posterior.linear * (inputs @ inputs.mT)
    covariance = prior - half.mT @ half + _JITTER * torch.eye(inputs.shape[-2], dtype=inputs.dtype)
    mean = posterior.shift + posterior.spread * (cross @ torch.tensor(posterior.weights))
    return mean, posterior.spread**2 * covariance


_JITTER = 1e-8
"""Of standardised outputs, since repeated points have singular covariances."""


def _matern(left: Any, right: Any, signal: float) -> Any:
    import torch

    distance = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    return signal * (1.0 + ROOT5 * distance + (5.0 / 3.0) * distance**2) * torch.exp(-ROOT5 * distance)
