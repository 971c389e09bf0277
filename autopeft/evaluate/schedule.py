"""The learning rate over the steps of a training, and over the rest of them for parameters that join later."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from autopeft.domain.spec import TrainingSpec

JOINED = "joined"
"""Key of an optimiser's group: after how many steps its parameters came."""
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def schedule_of(optimizer: torch.optim.Optimizer, spec: TrainingSpec, steps: int) -> LambdaLR:
    """`transformers.get_scheduler` with `ceil(warmup * steps)` warm-up steps."""
    return _made(optimizer, spec, math.ceil(spec.warmup * steps), steps)


def extend(schedule: LambdaLR, optimizer: torch.optim.Optimizer, spec: TrainingSpec, steps: int, done: int = 0) -> None:
    """Let the schedule begin anew for groups that it does not know, over the steps that are left to them.

    They warm up for as many steps as the others did, then go down from the same peak (IncreLoRA's restart warm-up).

    Args:
        schedule: Of a training.
        optimizer: Of the same; its new groups say when they joined (`JOINED`).
        spec: Of the same.
        steps: Of the same.
        done: Steps before this training that `JOINED` counts too.
    """
    for group in optimizer.param_groups[len(schedule.base_lrs) :]:
        joined = int(group[JOINED]) - done
        left = max(1, steps - joined)
        probe = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        share = _made(probe, spec, min(left, math.ceil(spec.warmup * steps)), left).lr_lambdas[0]
        group["initial_lr"] = peak = schedule.base_lrs[0]
        group["lr"] = peak * _later(share, joined, schedule.last_epoch)
        schedule.base_lrs.append(peak)
        schedule.lr_lambdas.append(partial(_later, share, joined))


def _later(share: Callable[[int], float], joined: int, step: int) -> float:
    return share(max(0, step - joined))


def _made(optimizer: torch.optim.Optimizer, spec: TrainingSpec, warmup: int, steps: int) -> LambdaLR:
    made: LambdaLR = get_scheduler(_SCHEDULES[spec.schedule], optimizer, warmup, steps)
    return made
