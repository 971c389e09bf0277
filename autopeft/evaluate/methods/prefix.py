"""Keys and values per layer that every token of a sequence may look at: prefix tuning.

Li and Liang, ACL 2021, section 4, in the per-layer form of AutoPEFT (Zhou et al., TACL 2024): each chosen layer has a
prefix of its own, so that any set of layers can have one. peft's prefix tuning takes all layers, through the cache.
"""

from __future__ import annotations

from typing import Any

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import IntDomain
from autopeft.evaluate.methods.checks import layers_without
from autopeft.evaluate.methods.method import Attached, Given, OwnMethod


class Prefix(OwnMethod):
    """Attention over `[P_k; K]` and `[P_v; V]`: `softmax(Q [P_k; K]^T / sqrt(d)) [P_v; V]` (He et al., 2022, eq. 5).

    P_k and P_v, `[kv_heads, length, head_dim]`, are parameters, or with `bottleneck` > 0 the output of
    `W_up tanh(W_down E + b_down) + b_up` with an embedding E `[length, hidden]` and W_down shared by the layers of the
    insertion (Li and Liang, section 4.3; AutoPEFT has a width of 800). They stand before the keys of the real tokens,
    behind rotary position embeddings and the cache: every token sees them, none of them has a position, and the
    positions of the real tokens are what they were. Untrained it is a small random prefix, as in the papers, and not
    the base's function.
    """

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Layers without an attention of known shape."""
        without = [
            index
            for index in insertion.layers
            if not layout.layers[index].attention or not self._kv_width(layout.layers[index], layout)
        ]
        if not without:
            return []
        found = layers_without(without, layout, "attention with known queries, keys and values")
        return [Problem("layers", found, "", "Leave it out.")]

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """With w = kv_heads * head_dim, a layer has 2 * length * w.

        With a bottleneck b it has 2 * w * (b + 1), and all of them share length * hidden + b * (hidden + 1).
        """
        length, bottleneck = int(insertion.settings["length"]), int(insertion.settings["bottleneck"])
        width = sum(self._kv_width(layout.layers[index], layout) for index in insertion.layers)
        if not bottleneck:
            return 2 * length * width
        if not insertion.layers:
            return 0
        return length * layout.hidden_size + bottleneck * (layout.hidden_size + 1) + 2 * width * (bottleneck + 1)

    def attach(self, model: Any, layout: ModelLayout, insertion: Insertion, name: str, given: Given) -> Attached:
        """A module with the prefix below each block, and an attention that looks at it."""
        from autopeft.evaluate.methods.prefix_attention import give_prefix
        from autopeft.evaluate.methods.prefix_modules import PlainPrefix, ReparameterisedPrefix, Shared

        length, bottleneck = int(insertion.settings["length"]), int(insertion.settings["bottleneck"])
        parameters, paths = {}, []
        shared = Shared(length, layout.hidden_size, bottleneck) if bottleneck else None
        for place, index in enumerate(insertion.layers):
            layer = layout.layers[index]
            heads = self._kv_width(layer, layout) // layout.head_dim
            prefix: PlainPrefix | ReparameterisedPrefix
            if shared is None:
                prefix = PlainPrefix(heads, length, layout.head_dim)
            else:
                prefix = ReparameterisedPrefix(heads, length, layout.head_dim, shared, holds_shared=place == 0)
            block = model.get_submodule(layer.path)
            prefix.like(next(block.parameters()))
            block.add_module(name, prefix)
            give_prefix(model, layer, layout, prefix)
            paths.append(layer.attention)
            parameters.update({f"{index}.{part}": value for part, value in prefix.named_parameters()})
        return Attached(tuple(paths), parameters)

    def _kv_width(self, layer: LayerLayout, layout: ModelLayout) -> int:
        """Width of all keys of a layer; 0 where they do not divide into heads."""
        key = layer.module(Role.KEY)
        width = key.out_features if key is not None else layout.kv_heads * layout.head_dim
        return width if layout.head_dim and width % layout.head_dim == 0 else 0


METHODS = (
    Prefix(
        MethodFacts(
            name="prefix",
            title="Prefix tuning per layer",
            paper="Li and Liang, ACL 2021 (arXiv:2101.00190); Zhou et al., TACL 2024 (arXiv:2301.12132)",
            summary="Keys and values in front of those of the tokens, in the attention of each chosen layer.",
            settings={"length": IntDomain(low=1, high=4096, log=True), "bottleneck": IntDomain(low=0, high=16384)},
            defaults={"length": 10, "bottleneck": 0},
            knob="length",
            ladder=(1, 3, 6, 12, 24, 48, 96),
            learning_rates=(3e-4, 3e-2),
            takes_modules=False,
            merges=False,
            quantised=True,
            library="autopeft",
        )
    ),
)
