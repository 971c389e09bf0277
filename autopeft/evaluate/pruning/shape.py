"""What of a layer can be pruned, from the layout alone: heads by group, FFN units, and how many a ratio drops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import LayerLayout, ModelLayout, Role

SPLIT = (Role.QUERY, Role.KEY, Role.VALUE)
FFN_INTO = (Role.FFN_IN, Role.FFN_GATE)
BLOCKS = "blocks"
"""A fused matrix holds all queries, then all keys, then all values (GPT-2)."""
GROUPS = "groups"
"""A fused matrix holds the queries, key and value of one group of heads after another (GPT-NeoX, BLOOM, Falcon)."""


def dropped(ratio: float, count: int) -> int:
    """How many of `count` a ratio drops: the nearest whole number, halves upwards.

    An exact count, because a quantile of the scores as a threshold drops one more or less where it falls on a score.
    """
    return math.floor(ratio * count + 0.5)


@dataclass(frozen=True)
class HeadShape:
    """The heads of one layer; a group is the query heads that share one head of keys and values.

    Either whole groups go, or query heads, and then as many of each group, because kernels want the same number in
    every one; their keys and values stay. `kept` are groups or query heads, ascending.
    """

    groups: int
    queries: int
    """Query heads per group; 1 in plain multi-head attention."""
    head_dim: int
    within: bool = False
    """Whether query heads go, of which a group has more than one."""

    @property
    def parts(self) -> int:
        """How many there are of what may go."""
        return self.groups * self.queries if self.within else self.groups

    def count(self, kept: Sequence[int]) -> int:
        """What the attention has to count anew: its groups, or the query heads of each."""
        return len(kept) // self.groups if self.within else len(kept)

    def query_rows(self, kept: Sequence[int]) -> list[int]:
        """Outputs of the query projection, and inputs of the attention's output projection, that stay."""
        return _runs(kept, self.head_dim if self.within else self.queries * self.head_dim)

    def kv_rows(self, kept: Sequence[int]) -> list[int]:
        """Outputs of the key or of the value projection that stay."""
        return _runs(range(self.groups) if self.within else kept, self.head_dim)

    def fused_rows(self, kept: Sequence[int], order: str) -> list[int]:
        """Outputs of one projection for all three; `order` is `BLOCKS` or `GROUPS`."""
        each = self.queries + 2
        if order == GROUPS and self.within:
            heads = [head // self.queries * each + head % self.queries for head in kept]
            keys = [group * each + place for group in range(self.groups) for place in (each - 2, each - 1)]
            return _runs(sorted([*heads, *keys]), self.head_dim)
        if order == GROUPS:
            return _runs(kept, each * self.head_dim)
        of_queries = self.groups * self.queries * self.head_dim
        of_keys = self.groups * self.head_dim
        keys = self.kv_rows(kept)
        return [
            *self.query_rows(kept),
            *(of_queries + row for row in keys),
            *(of_queries + of_keys + row for row in keys),
        ]


def _runs(kept: Iterable[int], length: int) -> list[int]:
    return [row for one in kept for row in range(one * length, (one + 1) * length)]


def head_shape(layer: LayerLayout, layout: ModelLayout, within: bool = False) -> HeadShape | None:
    """The heads of a layer; None where its projections do not have the widths that heads and groups would have.

    `within` asks for query heads to go where groups have several; a group of one goes whole in any case.
    """
    output = layer.module(Role.ATTENTION_OUTPUT)
    groups, dim = layout.kv_heads, layout.head_dim
    if output is None or groups < 1 or dim < 1 or layout.heads % groups:
        return None
    widths = [layout.heads * dim, groups * dim, groups * dim]
    found = [layer.module(role) for role in SPLIT]
    if all(module is not None for module in found):
        fits = [module.out_features for module in found if module is not None] == widths
    else:
        fused = layer.module(Role.QKV)
        fits = fused is not None and fused.out_features == sum(widths)
    if not fits or output.in_features != widths[0]:
        return None
    queries = layout.heads // groups
    return HeadShape(groups, queries, dim, within and queries > 1)


def ffn_units(layer: LayerLayout) -> int | None:
    """Width of the feed-forward part; None where its way in and its way out do not meet."""
    out = layer.module(Role.FFN_OUT)
    into = [module for role in FFN_INTO if (module := layer.module(role)) is not None]
    if out is None or not into or any(module.out_features != out.in_features for module in into):
        return None
    return out.in_features


@dataclass(frozen=True)
class Site:
    """One PEFT module of a candidate: a rank of it is one inner unit, of LoRA or of a bottleneck."""

    insertion: int
    """Index in the candidate."""
    method: str
    layer: int
    role: str
    path: str
    """Of the linear module that it acts on, as in the untouched model."""
    ranks: int

    @property
    def key(self) -> str:
        """The site's name in scores, decisions and files: `<insertion>:<path>`."""
        return f"{self.insertion}:{self.path}"


KNOBS = {"lora": "rank", "rslora": "rank", "serial": "size", "parallel": "size"}
"""The methods whose modules can be pruned, and the setting that is their number of ranks."""


def sites(insertions: Sequence[Insertion], layout: ModelLayout) -> tuple[Site, ...]:
    """Every PEFT module of the insertions, in their order, layer by layer."""
    found = []
    for index, insertion in enumerate(insertions):
        ranks = int(insertion.settings[KNOBS[insertion.method]])
        for layer in insertion.layers:
            for role in insertion.modules:
                (path,) = layout.paths((layer,), (role,))
                found.append(Site(index, insertion.method, layer, role, path, ranks))
    return tuple(found)
