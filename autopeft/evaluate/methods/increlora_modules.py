"""The module of IncreLoRA, whose rank grows, and what makes it grow while it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autopeft.evaluate.methods.beside import Beside
from autopeft.evaluate.methods.growth import Schedule, shared_out
from autopeft.evaluate.methods.method import Companion

BETAS = 0.85, 0.85
"""Of the running means of the score and of its deviation."""
SPARE = 1e-5
"""E of the ranks that are trained in advance: enough for gradients, too little to be noticed."""
_SPREAD = 0.02
"""Standard deviation of A and B at first, as in AdaLoRA."""


class Growing(Beside):
    """`scale * B diag(E) A`, one parameter per row of A, column of B and entry of E, so that ranks come and go.

    The first `rank` ranks are trained. Behind them are spare ones, whose A and B are trained and whose E stays `SPARE`.
    """

    def __init__(
        self,
        linear: Any,
        wide_in: int,
        wide_out: int,
        *,
        transposed: bool,
        scale: float,
        dropout: float,
        seed: Sequence[int],
    ) -> None:
        """With rank 1 and E = 0, so that the model is as before; what `seed` says is drawn for each rank alone."""
        super().__init__(linear, wide_in, wide_out, transposed=transposed)
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.most = min(wide_in, wide_out)
        self.rank = 1
        self.watched = False
        """Whether the score is taken in every backward pass."""
        self.score = torch.zeros((), dtype=self.dtype, device=self.device)
        """Sum of |dW * grad(dW)| / sqrt(size) over the backward passes since it was last set to 0."""
        self._seed = list(seed)
        self.A, self.B, self.E = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        self._draw(1)
        self.E[0].data.zero_()
        self.E[0].requires_grad_(True)

    @property
    def spares(self) -> int:
        """Ranks that are prepared."""
        return len(self.A) - self.rank

    def grow(self, ranks: int) -> None:
        """Have so many more ranks, the spare ones first."""
        self._draw(ranks - self.spares)
        for index in range(self.rank, self.rank + ranks):
            self.E[index].requires_grad_(True)
        self.rank += ranks

    def spare(self, ranks: int) -> None:
        """Have so many spare ranks, or as many as the sides of the weight allow."""
        keep = self.rank + min(ranks, self.most - self.rank)
        self._draw(keep - len(self.A))
        if keep < len(self.A):  # these lists take nothing out
            self.A, self.B, self.E = (nn.ParameterList(list(part)[:keep]) for part in (self.A, self.B, self.E))

    def become(self, rank: int, spares: int) -> None:
        """Have these ranks, whatever there were; values are those of new ones."""
        self.A, self.B, self.E = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        self.rank = 0
        self.grow(rank)
        self.spare(spares)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A `[ranks, in]`, E `[ranks]` and B `[ranks, out]`, spare ones included."""
        return torch.stack(list(self.A)), torch.cat(list(self.E)), torch.stack(list(self.B))

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """`scale * B diag(E) A x`."""
        first, values, second = self.factors()
        x = self.dropout(x)
        found = self.scale * functional.linear(functional.linear(x, first) * values, second.T)
        if self.watched and self.training and found.requires_grad:
            found = _Watched.apply(found, x, self)
        return found

    def dense(self) -> torch.Tensor:
        """`scale * B diag(E) A`."""
        first, values, second = self.factors()
        return self.scale * (second.T * values) @ first

    def see(self, gradient: torch.Tensor, x: torch.Tensor) -> None:
        """Add the score of a backward pass; the gradient of the whole update exists for this moment only.

        Args:
            gradient: Of the loss by the update's output, `[..., out]`.
            x: Its input, `[..., in]`.
        """
        with torch.no_grad():
            outer = gradient.reshape(-1, self.wide_out).to(self.dtype).T @ x.reshape(-1, self.wide_in).to(self.dtype)
            outer *= self.dense()
            self.score = self.score + outer.abs_().sum() / math.sqrt(self.wide_in * self.wide_out)

    def _draw(self, ranks: int) -> None:
        """Append ranks: A and B from N(0, 0.02^2), a function of the seed and of the place of the rank alone."""
        for index in range(len(self.A), len(self.A) + ranks):
            numbers = np.random.default_rng([*self._seed, index]).normal(0.0, _SPREAD, self.wide_in + self.wide_out)
            values = torch.from_numpy(numbers).to(device=self.device, dtype=self.dtype)
            self.A.append(nn.Parameter(values[: self.wide_in].clone()))
            self.B.append(nn.Parameter(values[self.wide_in :].clone()))
            self.E.append(nn.Parameter(torch.full_like(values[:1], SPARE), requires_grad=False))


class _Watched(torch.autograd.Function):
    """The identity, which shows the gradient that passes to a module."""

    @staticmethod
    def forward(context: Any, output: torch.Tensor, x: torch.Tensor, owner: Growing) -> torch.Tensor:
        context.save_for_backward(x)
        context.owner = owner
        return output.view_as(output)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        context.owner.see(gradients[0], *context.saved_tensors)
        return gradients[0], None, None


class Growth(Companion):
    """Scores the modules of one insertion in every step and lets the best of them grow when it is time."""

    def __init__(
        self,
        modules: Mapping[str, Growing],
        schedule: Schedule,
        steps: int,
        orthogonality: float,
        fold: Callable[[], None],
    ) -> None:
        """`modules` by path, in the order of the insertion; `fold` puts them into the base."""
        self._modules = dict(modules)
        self._schedule = schedule
        self._steps = steps
        self._orthogonality = orthogonality
        self._fold = fold
        self._grown = False
        self._mean = self._deviation = torch.stack([module.score for module in modules.values()])
        for module in modules.values():
            module.watched = True
            module.spare(schedule.block if schedule.at else 0)

    def form(self) -> dict[str, Any]:
        """The ranks by path, and the spare ones, of which there are none when the growth is over."""
        return {
            "ranks": {path: module.rank for path, module in self._modules.items()},
            "spares": {path: module.spares for path, module in self._modules.items()},
        }

    def load_form(self, form: Mapping[str, Any]) -> None:
        """Make these ranks, and grow no more."""
        self._grown = True
        for path, module in self._modules.items():
            module.become(form["ranks"][path], form["spares"][path])
            module.watched = False

    def scores(self) -> list[float]:
        """Smoothed sensitivity times smoothed uncertainty of every module."""
        found: list[float] = (self._mean * self._deviation).tolist()
        return found

    def before_update(self) -> None:
        """Add the gradient of `orthogonality * mean(||P P^T - I||_F)` over the A and B of all modules.

        So reported losses are the task's. Of a matrix that is orthonormal to the last bit it is 0.
        """
        if not self._orthogonality:
            return
        weight = self._orthogonality / (2 * len(self._modules))
        with torch.no_grad():
            for module in self._modules.values():
                for rows in (module.A, module.B):
                    matrix = torch.stack(list(rows))
                    uneven = matrix @ matrix.T - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
                    norm = torch.linalg.norm(uneven).clamp_min(torch.finfo(matrix.dtype).tiny)
                    for row, pull in zip(rows, (2 * weight / norm) * uneven @ matrix, strict=True):
                        row.grad = pull.clone() if row.grad is None else row.grad + pull

    def after_step(self, step: int) -> bool:
        """Smooth the scores of this step; grow where it is time; let go of the spare ranks when it is over."""
        if self._grown:
            return False
        modules = list(self._modules.values())
        seen = torch.stack([module.score for module in modules])
        self._mean = BETAS[0] * self._mean + (1 - BETAS[0]) * seen
        self._deviation = BETAS[1] * self._deviation + (1 - BETAS[1]) * (seen - self._mean).abs()
        ranks = [module.rank for module in modules]
        due = self._schedule.due(step, sum(ranks))
        more = [0] * len(modules)
        if due:
            most = [module.most for module in modules]
            more = shared_out(self.scores(), ranks, most, due, self._schedule.block)
        self._grown = sum(ranks) + sum(more) >= self._schedule.total or step >= self._steps
        for module, extra in zip(modules, more, strict=True):
            module.score = torch.zeros_like(module.score)
            module.grow(extra)
            if extra or self._grown:
                module.spare(0 if self._grown else self._schedule.block)
            module.watched = not self._grown
        return self._grown or any(more)

    def state(self) -> dict[str, Any]:
        """Form, running means, and whether the growth is over."""
        return {
            **self.form(),
            "mean": self._mean.to("cpu", copy=True),
            "deviation": self._deviation.to("cpu", copy=True),
            "grown": self._grown,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Make the ranks of the state; the values of the parameters are the training's to set.

        Raises:
            ValueError: where the state is of other modules.
        """
        if state["ranks"].keys() != self._modules.keys():
            raise ValueError("the state is of other modules")
        self.load_form(state)
        self._grown = bool(state["grown"])
        for module in self._modules.values():
            module.watched = not self._grown
        self._mean, self._deviation = (state[name].to(self._mean) for name in ("mean", "deviation"))

    def fill(self) -> None:
        """All modules at the target, and the ranks in advance still there: hardly more than before the last growth."""
        for module in self._modules.values():
            module.become(self._schedule.target, 0)
            module.spare(self._schedule.block)

    def fold(self) -> None:
        """Add the updates to the weights."""
        self._fold()
