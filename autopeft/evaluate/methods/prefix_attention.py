"""Attention that looks at a prefix, in whatever model: through transformers' attention interface, or around it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.evaluate.methods.prefix_modules import LayerPrefix
from autopeft.evaluate.methods.prefix_scores import ScoresWithPrefix

NAME = "autopeft-prefix"
"""Of our function among transformers' attention functions."""
_PLACE = "_autopeft_prefix"
_MODES = ("eager", "sdpa")


@dataclass(frozen=True)
class _Place:
    """What an attention module with a prefix holds."""

    prefix: LayerPrefix
    attend: Callable[..., Any]
    """The attention function that the model would have called."""
    drops_mask: bool
    """Whether a missing mask stands for a causal one where the module is causal, as `sdpa` has it."""


def give_prefix(model: Any, layer: LayerLayout, layout: ModelLayout, prefix: LayerPrefix) -> None:
    """Let the attention of a layer look at the prefix.

    The module gets a configuration of its own that names our attention function; masks are still made by the model's,
    for the function that it had. A module that computes its attention itself has its forward pass wrapped.

    Raises:
        UserError: where the attention is computed by kernels that take no mask of ours, or in no way that is known.
    """
    module = model.get_submodule(layer.attention)
    names, known = _forward_of(module)
    config = getattr(module, "config", None)
    if "get_interface" not in names or config is None:
        query, output = layer.module(Role.QUERY), layer.module(Role.ATTENTION_OUTPUT)
        if query is None:
            raise _refused(f"'{layer.attention}' computes its attention in a way that a prefix cannot join")
        inside = output is not None and output.path.startswith(f"{layer.attention}.")
        joined = ScoresWithPrefix(
            module,
            model.get_submodule(query.path),
            model.get_submodule(output.path) if output is not None and inside else None,
            prefix,
        )
        module.forward = joined.forward
        return
    mode = config._attn_implementation or "eager"
    eager = known.get("eager_attention_forward")
    if mode not in _MODES or (mode == "eager" and eager is None):
        raise _refused(f"a prefix cannot join the attention '{mode}' of '{layer.attention}'")
    attend = known["ALL_ATTENTION_FUNCTIONS"].get_interface(mode, eager)
    vars(module)[_PLACE] = _Place(prefix, attend, drops_mask=mode == "sdpa")
    module.config = copy.copy(config)
    module.config._attn_implementation_internal = NAME


def attention_with_prefix(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> Any:
    """An attention function of transformers: the module's own, over the prefix and then the keys of the tokens.

    Args:
        module: The attention module.
        query: `[batch, heads, queries, head_dim]`, rotated where the model rotates.
        key: `[batch, kv_heads, keys, head_dim]`, those of the cache included.
        value: As `key`.
        attention_mask: `[batch or 1, heads or 1, queries, keys]`, True or 0 where a key is seen, or None.
        **arguments: Whatever else the module gives, among it `scaling`, `dropout` and `is_causal`.
    """
    place: _Place = vars(module)[_PLACE]
    if attention_mask is None and place.drops_mask and query.shape[2] > 1:
        causal = arguments.get("is_causal")
        if getattr(module, "is_causal", True) if causal is None else causal:
            # Without a mask `sdpa` takes the first keys for those of the queries; the rest of a static cache is empty.
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
            shape = (1, 1, query.shape[2], key.shape[2])
            attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    before_key, before_value = (
        part.to(real.dtype).repeat_interleave(real.shape[1] // place.prefix.heads, dim=0).expand(len(real), -1, -1, -1)
        for part, real in zip(place.prefix(), (key, value), strict=True)
    )
    key, value = torch.cat([before_key, key], dim=2), torch.cat([before_value, value], dim=2)
    attention_mask = _widened(attention_mask, place.prefix.length)
    if arguments.get("position_bias") is not None:
        arguments["position_bias"] = _widened(arguments["position_bias"], place.prefix.length)
    return place.attend(module, query, key, value, attention_mask, **arguments)


AttentionInterface.register(NAME, attention_with_prefix)


def _widened(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """A mask, or what is added to scores, with so many visible keys on the left."""
    if mask is None:
        return None
    visible = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
    return torch.cat([visible((*mask.shape[:-1], length)), mask], dim=-1)


def _forward_of(module: nn.Module) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names that a module's forward pass uses, and those that it can see."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return (code.co_names, forward.__globals__) if code is not None else ((), {})


def _refused(found: str) -> UserError:
    return UserError(Problem("method", found, "eager, sdpa", "Load the model with `attn_implementation='sdpa'`."))
