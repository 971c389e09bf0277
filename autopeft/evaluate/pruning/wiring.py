"""How the attention of a model counts its heads: found by trying on a copy of one block, not by its name."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.utils._pytree import tree_map

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.evaluate.pruning.live import keep_inputs, keep_outputs
from autopeft.evaluate.pruning.shape import BLOCKS, GROUPS, HeadShape, head_shape

_COUNT = re.compile(r"head", re.IGNORECASE)
_NO_COUNT = re.compile(r"dim|size|group|scal", re.IGNORECASE)
_PER_GROUP = re.compile(r"group|rep", re.IGNORECASE)
"""`num_key_value_groups` and `n_rep`: how often keys and values are repeated."""
_TOLERANCE = 1e-4
"""Largest difference to the masked block, relative to its largest value, in float32; seen: 1e-6."""


class Wiring(BaseModel):
    """What besides its matrices an attention module needs to be told when it loses heads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_group: dict[str, int] = {}
    """Attributes that grow with the number of groups, and by how much per group; where query heads go, with the number
    of those that each group has."""
    fused: str = BLOCKS
    """Order of the outputs of one projection for queries, keys and values."""


def prune_heads(block: Any, layer: LayerLayout, shape: HeadShape, kept: list[int], wiring: Wiring) -> None:
    """Leave these heads in a plain block, in place; `block` is at `layer.path`."""
    _each_matrix(block, layer, shape, kept, wiring)
    set_counts(block.get_submodule(_below(layer, layer.attention)), shape.count(kept), wiring)


def set_counts(attention: Any, count: int, wiring: Wiring) -> None:
    """Tell the attention module how many heads it has (`HeadShape.count`)."""
    for name, each in wiring.per_group.items():
        setattr(attention, name, count * each)


def find_wiring(
    model: Any, layout: ModelLayout, inputs: Mapping[str, torch.Tensor], keep: int, *, within: bool = False
) -> Wiring:
    """Try the ways in which attributes may count heads until a pruned copy of the first block equals a masked one.

    Args:
        model: Untouched, as `AutoModelFor…` returned it.
        layout: Of the model.
        inputs: Of its forward pass, a few rows; without labels.
        keep: Groups of heads that the pruned layers will have, or query heads of each group.
        within: Whether query heads go.

    Raises:
        UserError: where no way gives the same output.
    """
    layer = layout.layers[0]
    shape = head_shape(layer, layout, within)
    assert shape is not None  # the rules refuse anything else
    assert 1 <= keep < (shape.queries if shape.within else shape.groups)
    arguments, named = _call_of(model, layer, inputs)
    # The first ones go: were the last ones dropped, an offset left as it was could pass unnoticed.
    kept = list(range(shape.groups - keep, shape.groups))
    if shape.within:
        kept = [head for head in range(shape.parts) if head % shape.queries >= shape.queries - keep]
    block = copy.deepcopy(model.get_submodule(layer.path)).float().eval()
    expected = _masked(block, layer, shape, kept, arguments, named)
    for wiring in _hypotheses(model, layout, shape):
        tried = copy.deepcopy(block)
        prune_heads(tried, layer, shape, kept, wiring)
        try:
            with torch.no_grad():
                found = _hidden(tried(*arguments, **named))
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
        if found.shape == expected.shape and _close(found, expected):
            return wiring
    raise UserError(
        Problem(
            "heads",
            f"no way was found to take heads out of the attention of the model type '{layout.model_type}'",
            "0 on this model",
            "Set the ratio of heads to 0.",
        )
    )


def projection_rows(shape: HeadShape, kept: Sequence[int], wiring: Wiring) -> dict[Role, list[int]]:
    """The outputs of each projection that stay with these heads; of those that lose some."""
    found = {Role.QUERY: shape.query_rows(kept), Role.QKV: shape.fused_rows(kept, wiring.fused)}
    return found if shape.within else {**found, Role.KEY: shape.kv_rows(kept), Role.VALUE: shape.kv_rows(kept)}


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1e-6))


def _hypotheses(model: Any, layout: ModelLayout, shape: HeadShape) -> Iterator[Wiring]:
    """Ways to count, the likeliest first: every attribute that has the number of heads or their width, then fewer.

    Only numbers that all layers' attention modules have alike: the index of a layer is no number of heads.
    """
    attentions = [vars(model.get_submodule(layer.attention)) for layer in layout.layers]
    count, others = (shape.queries, shape.groups) if shape.within else (shape.groups, shape.queries)
    per_group: dict[str, int] = {}
    for name, value in attentions[0].items():
        if type(value) is not int or any(one.get(name) != value for one in attentions):
            continue
        if shape.within and value == count and _PER_GROUP.search(name):
            per_group[name] = 1
            continue
        counts = _COUNT.search(name) and not _NO_COUNT.search(name)
        if counts and value == count * others:
            per_group[name] = others
        elif counts and value == count:
            per_group[name] = 1
        elif value == count * others * shape.head_dim and value != shape.head_dim:
            per_group[name] = others * shape.head_dim
        elif value == count * shape.head_dim and value != shape.head_dim:
            per_group[name] = shape.head_dim
    orders = (BLOCKS, GROUPS) if layout.layers[0].module(Role.QKV) is not None else (BLOCKS,)
    names = list(per_group)
    for left_out in range(len(names) + 1):
        for chosen in itertools.combinations(names, len(names) - left_out):
            for order in orders:
                yield Wiring(per_group={name: per_group[name] for name in chosen}, fused=order)


def _each_matrix(block: Any, layer: LayerLayout, shape: HeadShape, kept: list[int], wiring: Wiring) -> None:
    for role, outputs in projection_rows(shape, kept, wiring).items():
        found = layer.module(role)
        if found is not None:
            keep_outputs(block.get_submodule(_below(layer, found.path)), outputs)
    output = layer.module(Role.ATTENTION_OUTPUT)
    assert output is not None
    keep_inputs(block.get_submodule(_below(layer, output.path)), shape.query_rows(kept))


def _masked(
    block: Any, layer: LayerLayout, shape: HeadShape, kept: list[int], arguments: Any, named: Any
) -> torch.Tensor:
    output = layer.module(Role.ATTENTION_OUTPUT)
    assert output is not None
    module = block.get_submodule(_below(layer, output.path))
    factors = torch.zeros(output.in_features, device=next(module.parameters()).device)
    factors[shape.query_rows(kept)] = 1.0
    handle = module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factors, *inputs[1:]))
    try:
        with torch.no_grad():
            return _hidden(block(*arguments, **named))
    finally:
        handle.remove()


def _call_of(model: Any, layer: LayerLayout, inputs: Mapping[str, torch.Tensor]) -> tuple[Any, Any]:
    """The arguments with which the model calls a block, tensors in float32."""
    seen: list[tuple[Any, Any]] = []

    def note(module: nn.Module, arguments: Any, named: Any) -> None:
        seen.append((arguments, named))

    block = model.get_submodule(layer.path)
    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    cache, mode = model.config.use_cache if hasattr(model.config, "use_cache") else None, model.training
    try:
        model.eval()
        if cache is not None:
            model.config.use_cache = False
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
        model.train(mode)
        if cache is not None:
            model.config.use_cache = cache
    arguments, named = seen[0]
    return tree_map(_wide, arguments), tree_map(_wide, named)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _hidden(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def _below(layer: LayerLayout, path: str) -> str:
    return path.removeprefix(layer.path).removeprefix(".")
