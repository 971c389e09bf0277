"""The scores by which the criteria choose: of trained masks and importance, drawn, or of the weights' norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.evaluate.pruning.decision import Scores, Values
from autopeft.evaluate.pruning.importance import Importance
from autopeft.evaluate.pruning.live import LiveSite, plain
from autopeft.evaluate.pruning.masks import Mask, Masks
from autopeft.evaluate.pruning.shape import FFN_INTO, Site, ffn_units, head_shape
from autopeft.evaluate.pruning.wiring import Wiring, projection_rows


def light_peft(masks: Masks, importance: Importance, layout: ModelLayout, *, within: bool = False) -> Scores:
    """|mask| of units, of query heads or summed over those of a group, and the importance of modules and ranks.

    The paper's code ranks by the signed value; a mask that went below zero matters as much as its size, so the absolute
    value is taken here. At its learning rate and length the two are the same: no mask gets near zero.
    """
    heads, groups = masks.heads or None, layout.kv_heads
    each = heads and tuple(_sizes(mask).reshape(groups, -1) for mask in _in_order(heads))
    return Scores(
        heads=each and tuple(one if within and one.shape[1] > 1 else one.sum(axis=1) for one in each),
        units=(masks.units or None) and tuple(_sizes(mask) for mask in _in_order(masks.units)),
        modules=importance.modules(),
        ranks={key: found.numpy() for key, found in importance.ranks().items()},
    )


def random(
    sites: Sequence[Site], layout: ModelLayout, seed: int, *, heads: bool, units: bool, within: bool = False
) -> Scores:
    """Independent uniform numbers, a function of `seed` and of nothing else."""
    draw = np.random.default_rng([seed, 0x70727E])  # another stream than the batches' order

    def per_layer(count: int) -> Values:
        return draw.random(count)

    queries = layout.heads // layout.kv_heads
    shape = (layout.kv_heads, queries) if within and queries > 1 else (layout.kv_heads,)
    of_heads = tuple(draw.random(shape) for _ in layout.layers) if heads else None
    of_units = tuple(per_layer(ffn_units(layer) or 0) for layer in layout.layers) if units else None
    modules = {site.key: float(draw.random()) for site in sites}
    return Scores(of_heads, of_units, modules, {site.key: draw.random(site.ranks) for site in sites})


def magnitude(
    model: Any,
    live: Mapping[str, LiveSite],
    layout: ModelLayout,
    wiring: Wiring,
    *,
    heads: bool,
    units: bool,
    within: bool = False,
) -> Scores:
    """Norms of the frozen weights of each group (or query head) and each unit, without biases, and of the PEFT updates.

    A rank counts with the norm of its own product, `scale * |down_j| |up_j|`, a module with that of the whole,
    `scale * |up down|`: the size of the two matrices alone says nothing, as one of them starts at zero.
    """
    with torch.no_grad():
        return Scores(
            heads=tuple(_head_norms(model, layer, layout, wiring, within) for layer in layout.layers)
            if heads
            else None,
            units=tuple(_unit_norms(model, layer) for layer in layout.layers) if units else None,
            modules={key: float(one.scale * _product_norm(one)) for key, one in live.items()},
            ranks={key: _rank_norms(one) for key, one in live.items()},
        )


def _in_order(masks: Mapping[int, Mask]) -> list[Mask]:
    return [masks[index] for index in sorted(masks)]


def _sizes(mask: Mask) -> Values:
    return mask.values.detach().abs().double().cpu().numpy()


def _squares(model: Any, layer: LayerLayout, role: Role, of_outputs: bool) -> torch.Tensor | None:
    """Sum of the squared weights of each output, or of each input, of a module of the base: float64 on its device."""
    found = layer.module(role)
    if found is None:
        return None
    weight = plain(model.get_submodule(found.path)).weight.detach()
    axis = 1 if of_outputs != found.transposed else 0
    squares: torch.Tensor = torch.linalg.vector_norm(weight, dim=axis, dtype=torch.float32).double() ** 2
    return squares


def _head_norms(model: Any, layer: LayerLayout, layout: ModelLayout, wiring: Wiring, within: bool) -> Values:
    shape = head_shape(layer, layout, within)
    assert shape is not None
    total = np.zeros(shape.parts)
    nothing = projection_rows(shape, [], wiring)  # keys and values that stay whatever goes
    for role in (*nothing, Role.ATTENTION_OUTPUT):
        found = _squares(model, layer, role, of_outputs=role is not Role.ATTENTION_OUTPUT)
        if found is None:
            continue
        squares = found.cpu().numpy()
        for part in range(shape.parts):
            rows = {**projection_rows(shape, [part], wiring), Role.ATTENTION_OUTPUT: shape.query_rows([part])}
            total[part] += squares[sorted(set(rows[role]) - set(nothing.get(role, ())))].sum()
    return np.sqrt(total).reshape((shape.groups, -1) if shape.within else -1)


def _unit_norms(model: Any, layer: LayerLayout) -> Values:
    parts = [_squares(model, layer, role, of_outputs=True) for role in FFN_INTO]
    parts.append(_squares(model, layer, Role.FFN_OUT, of_outputs=False))
    total: torch.Tensor = sum((part for part in parts if part is not None), torch.zeros((), dtype=torch.float64))
    return total.sqrt().cpu().numpy()


def _product_norm(one: LiveSite) -> torch.Tensor:
    """Frobenius norm of `up down`, from the Gram matrices of the two, which are ranks wide."""
    down, up = one.down.weight.detach().double(), one.up.weight.detach().double()
    return ((down @ down.T) * (up.T @ up)).sum().clamp(min=0).sqrt()


def _rank_norms(one: LiveSite) -> Values:
    down, up = one.down.weight.detach().double(), one.up.weight.detach().double()
    return (one.scale * down.norm(dim=1) * up.norm(dim=0)).cpu().numpy()
