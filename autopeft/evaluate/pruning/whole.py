"""A pruned model as an ordinary Hugging Face folder, where an ordinary configuration can say its widths."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout, Role
from autopeft.evaluate.methods.bottleneck_modules import Bottleneck
from autopeft.evaluate.pruning.live import plain
from autopeft.evaluate.pruning.shape import ffn_units, head_shape


def save_whole(model: Any, layout: ModelLayout, folder: Path) -> None:
    """Write a pruned model, its LoRA merged, so that `from_pretrained` loads it without this project.

    Args:
        model: What `autopeft.load_adapter` returned for a pruned adapter; it stays as it is.
        layout: Of the base model before it was pruned.
        folder: To be made.

    Raises:
        UserError: where layers differ in their widths, where adapters cannot be merged, or where the model's
            configuration has no way to say fewer heads or units.
    """
    groups, units = _widths(model, layout)
    if any(isinstance(module, Bottleneck) for module in model.modules()):
        raise _refused("bottleneck adapters cannot be merged into the weights", "LoRA")
    merged = copy.deepcopy(model)
    for path, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, name = path.rpartition(".")
            setattr(merged.get_submodule(parent), name, plain(module))
    state = merged.state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for config in _configs(model.config, layout, groups, units):
        try:
            with torch.device("meta"):
                whole = type(model)(config)
        except (ValueError, RuntimeError, AssertionError):
            continue
        if {name: tensor.shape for name, tensor in whole.state_dict().items()} == shapes:
            merged.config = config
            merged.save_pretrained(folder)
            return
    raise _refused(f"the configuration of '{layout.model_type}' cannot say {groups} groups of heads", "FFN units alone")


def _widths(model: Any, layout: ModelLayout) -> tuple[int, int]:
    """Groups of heads and FFN units, the same in every layer."""
    found = set()
    for layer in layout.layers:
        shape, output, out = head_shape(layer, layout), layer.module(Role.ATTENTION_OUTPUT), layer.module(Role.FFN_OUT)
        if shape is None or output is None or out is None:
            raise _refused(f"layer {layer.index} has no heads or no units", "")
        context, inner = _inputs(model, output.path), _inputs(model, out.path)
        found.add((context // (shape.queries * shape.head_dim), inner))
    if len(found) > 1:
        raise _refused("its layers have different numbers of heads or units", "ffn_scope: layer")
    return found.pop()


def _inputs(model: Any, path: str) -> int:
    module = plain(model.get_submodule(path))
    return int(module.in_features if hasattr(module, "in_features") else module.nx)


def _configs(config: Any, layout: ModelLayout, groups: int, units: int) -> Iterator[Any]:
    """Copies of the configuration with fewer heads and units, by each of the fields that may mean them."""
    width = ffn_units(layout.layers[0])
    fields = config.to_dict()
    # None stands for a width that is computed, which a number can replace (GPT-2's `n_inner`).
    inner = [name for name, value in fields.items() if type(value) is int and value == width]
    inner += [name for name, value in fields.items() if value is None and "inner" in name]
    for name in inner if units != width else [None]:
        changed = copy.deepcopy(config)
        if name is not None:
            setattr(changed, name, units)
        if groups != layout.kv_heads:
            changed.num_attention_heads = groups * layout.heads // layout.kv_heads
            if hasattr(config, "num_key_value_heads"):
                changed.num_key_value_heads = groups
            changed.head_dim = layout.head_dim
        yield changed


def _refused(found: str, allowed: str) -> UserError:
    return UserError(
        Problem(
            "pruning",
            f"the pruned model is no ordinary one: {found}",
            allowed,
            "Load the adapter with `autopeft.load_adapter`.",
        )
    )
