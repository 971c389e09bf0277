"""How much the loss would fall by training each frozen weight: squared gradients, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autopeft.evaluate.methods.method import Calibration

Take = Callable[[str, torch.Tensor], None]
"""Is given the path of a module and the squared gradient of its weight over one batch, in single precision."""


def total_sensitivity(model: Any, paths: Mapping[str, bool], calibration: Calibration) -> dict[str, float]:
    """The sum of g over each weight (see `sensitivity`), which holds no more than a number per module."""
    found = dict.fromkeys(paths, 0.0)

    def add(path: str, squared: torch.Tensor) -> None:
        found[path] += float(squared.sum(dtype=torch.float64))

    _show(model, paths, calibration, add)
    return found


def sensitivity(model: Any, paths: Mapping[str, bool], calibration: Calibration) -> dict[str, torch.Tensor]:
    """g = sum over the batches of the squared gradient of the batch's loss, per weight, `[out, in]` (SPT's criterion).

    In evaluation mode, so without dropout. The gradient of one matrix exists at a time; the sums are on the CPU, as
    large as the weights in single precision. The model is left as it was.

    Args:
        model: That `AutoModelFor…` returned.
        paths: Of linear modules, and whether each holds its weight as `[in, out]`.
        calibration: The batches.

    Raises:
        ValueError: where there are no batches, or a gradient is not finite.
    """
    found: dict[str, torch.Tensor] = {}

    def add(path: str, squared: torch.Tensor) -> None:
        squared = squared.to("cpu")
        found[path] = found[path].add_(squared) if path in found else squared

    _show(model, paths, calibration, add)
    for path, transposed in paths.items():
        if path not in found:  # no gradient came by: the module has no part in the loss
            found[path] = torch.zeros(model.get_submodule(path).weight.shape)
        if transposed:
            found[path] = found[path].T.contiguous()
    return found


def _show(model: Any, paths: Mapping[str, bool], calibration: Calibration, take: Take) -> None:
    if not calibration.batches:
        raise ValueError("sensitivity is found on training rows, and there are none")
    if any(model.get_submodule(path).weight.device.type == "meta" for path in paths):
        raise ValueError("sensitivity is found with the values of the weights, and this model has none")
    with _only(model, {path: model.get_submodule(path).weight for path in paths}, take):
        for batch in calibration.batches:
            with calibration.autocast():
                loss = model(**batch).loss
            loss.backward()
            del loss


@contextmanager
def _only(model: Any, weights: Mapping[str, nn.Parameter], take: Take) -> Iterator[None]:
    """Inside, gradients of these weights alone are made, shown and dropped; the model predicts as in evaluation."""
    flags = [(part, part.requires_grad) for part in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    handles = []

    def shown(path: str) -> Callable[[torch.Tensor], None]:
        def show(weight: torch.Tensor) -> None:
            gradient, weight.grad = weight.grad, None
            assert gradient is not None  # it has just been accumulated
            squared = gradient.float().square_()
            if not torch.isfinite(squared.sum()):
                raise ValueError(f"the gradient of {path} is not finite")
            take(path, squared)

        return show

    try:
        model.eval()
        model.requires_grad_(False)
        for path, weight in weights.items():
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(shown(path)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for part, flag in flags:
            part.requires_grad_(flag)
            part.grad = None
        for module, mode in modes:
            module.training = mode
