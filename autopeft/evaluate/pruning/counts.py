"""Parameters that a decision leaves, from the layout alone."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.evaluate.pruning.decision import Decision
from autopeft.evaluate.pruning.shape import FFN_INTO, Site, head_shape, sites


def kept_sides(layer: LayerLayout, module: ModuleLayout, layout: ModelLayout, decision: Decision) -> tuple[int, int]:
    """Inputs and outputs that are left of a linear module."""
    into, out = module.in_features, module.out_features
    shape = head_shape(layer, layout, decision.within)
    if decision.heads is not None and shape is not None:
        kept = decision.heads[layer.index]
        of_queries, of_keys = len(shape.query_rows(kept)), len(shape.kv_rows(kept))
        match module.role:
            case Role.QUERY:
                out = of_queries
            case Role.KEY | Role.VALUE:
                out = of_keys
            case Role.QKV:
                out = of_queries + 2 * of_keys
            case Role.ATTENTION_OUTPUT:
                into = of_queries
    if decision.units is not None:
        units = len(decision.units[layer.index])
        if module.role in FFN_INTO:
            out = units
        elif module.role is Role.FFN_OUT:
            into = units
    return into, out


def lost_block_parameters(layout: ModelLayout, decision: Decision) -> int:
    """Frozen parameters that go: sum over the linear modules of (in + bias) * out, before less after."""
    lost = 0
    for layer in layout.layers:
        for module in layer.modules:
            into, out = kept_sides(layer, module, layout, decision)
            lost += (module.in_features + module.bias) * module.out_features - (into + module.bias) * out
    return lost


def kept_peft_parameters(insertions: Sequence[Insertion], layout: ModelLayout, decision: Decision) -> int:
    """What the PEFT modules that stay train, the head excluded.

    Sum over the sites of ranks * (in + out) for LoRA, with the sides that are left of the module that it acts on; of
    ranks * (in + out) + ranks + out for a bottleneck, whose sides are those of the sublayer.
    """
    return sum(
        _of_site(site, layout, len(decision.ranks[site.key]), decision)
        for site in sites(insertions, layout)
        if site.key in decision.ranks
    )


def _of_site(site: Site, layout: ModelLayout, ranks: int, decision: Decision) -> int:
    layer = layout.layers[site.layer]
    module = layer.module(site.role)
    assert module is not None
    if site.method in ("serial", "parallel"):
        # What goes into a sublayer and what comes out of it is as wide as the model.
        return ranks * 2 * module.out_features + ranks + module.out_features
    into, out = kept_sides(layer, module, layout, decision)
    return ranks * (into + out)
