"""Everything about a model that a later trial on it could notice."""

from __future__ import annotations

from typing import Any

import torch


def state_of(model: Any) -> dict[str, Any]:
    """Tensors, flags, modules, attributes, hooks and config, copied where they could change in place."""
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()},
        "all_buffers": {name: tensor.clone() for name, tensor in model.named_buffers()},
        "requires_grad": {name: part.requires_grad for name, part in model.named_parameters()},
        "grads": {name: part.grad is None for name, part in model.named_parameters()},
        "types": {name: type(module) for name, module in model.named_modules()},
        "identities": {name: id(module) for name, module in model.named_modules()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for name, module in model.named_modules()
        },
        "config": model.config.to_dict(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Bit for bit for tensors."""
    for key in ("tensors", "all_buffers"):
        assert list(before[key]) == list(after[key])
        for name, tensor in before[key].items():
            assert torch.equal(tensor, after[key][name]), name
            assert tensor.dtype == after[key][name].dtype
    for key in before.keys() - {"tensors", "all_buffers"}:
        assert before[key] == after[key], key
