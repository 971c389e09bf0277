"""The pruning criteria: their facts, and what of a candidate and a model they can take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from autopeft.domain.candidate import Candidate, Pruning, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import LayerLayout, ModelLayout
from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import ChoiceDomain, Domain, FloatDomain
from autopeft.evaluate.pruning.shape import KNOBS, dropped, ffn_units, head_shape

_PROJECTED = re.compile(r"(^|_)(q|k|v|qk|kv|query|key|value)(_|$)", re.IGNORECASE)
"""In the name of a normalisation: what it normalises (`q_norm`, `query_layernorm`, `layer_norm_kv`)."""
_RATIO = FloatDomain(low=0.0, high=0.99)
SETTINGS: Mapping[str, Domain] = {
    "heads": _RATIO,
    "ffn": _RATIO,
    "modules": _RATIO,
    "ranks": _RATIO,
    "penalty": FloatDomain(low=0.0, high=1.0),
    "estimation": FloatDomain(low=0.01, high=0.9),
    "ffn_scope": ChoiceDomain(values=("global", "layer")),
    "shared_heads": ChoiceDomain(values=("groups", "queries")),
    "masks": ChoiceDomain(values=("discard", "fold")),
}
"""Ratios dropped of heads (per layer), FFN units, PEFT modules and ranks; lambda of the L1 norm of the masks; the share
of the trial's steps for the estimation; whether FFN units compete over all layers; whether heads that share keys and
values go by whole groups, or as many query heads of each; what becomes of the masks."""
DEFAULTS: Mapping[str, Setting] = {
    "heads": 1 / 3,
    "ffn": 1 / 3,
    "modules": 0.75,
    "ranks": 0.5,
    "penalty": 1e-4,
    "estimation": 0.25,
    "ffn_scope": "global",
    "shared_heads": "groups",
    "masks": "discard",
}
"""The published script's; the share is ours, as the script counts 800 steps."""


class Criterion:
    """`autopeft.domain.ports.TreatmentRules` of one way to choose what goes."""

    def __init__(self, facts: TreatmentFacts) -> None:
        self.facts = facts

    def problems(self, candidate: Candidate, layout: ModelLayout) -> list[Problem]:
        """Settings out of range, methods whose modules cannot be cut, and layers that would lose everything."""
        pruning = candidate.pruning
        if pruning is None:
            return []
        found = _of_settings(self.facts, pruning)
        if found:
            return found
        if layout.quantised:
            found.append(
                Problem("pruning", "weights in 4 or 8 bits cannot be cut", "16 or 32 bits", "Leave out --load-in.")
            )
        found += _of_methods(candidate)
        heads, ffn = float(pruning.settings["heads"]), float(pruning.settings["ffn"])
        if heads > 0:
            found += _of_heads(heads, layout, within=pruning.settings["shared_heads"] == "queries")
        if ffn > 0:
            found += _of_units(ffn, str(pruning.settings["ffn_scope"]), layout)
        if heads > 0 or ffn > 0:
            found += _of_unknown_parts(layout)
        return found


def _of_settings(facts: TreatmentFacts, pruning: Pruning) -> list[Problem]:
    found = []
    for name, domain in facts.settings.items():
        value = pruning.settings.get(name)
        said = "is missing" if value is None else f"{value!r} is not allowed"
        if isinstance(domain, ChoiceDomain):
            if value not in domain.values:
                found.append(Problem(name, said, ", ".join(map(str, domain.values)), f"Choose a value for {name}."))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not domain.low <= value <= domain.high:
            found.append(Problem(name, said, f"{domain.low:g} to {domain.high:g}", f"Change {name}."))
    found += [
        Problem(name, f"{facts.name} has no such setting", ", ".join(facts.settings), "Remove it.")
        for name in pruning.settings
        if name not in facts.settings
    ]
    return found


def _of_methods(candidate: Candidate) -> list[Problem]:
    refused = sorted({one.method for one in candidate.insertions} - KNOBS.keys())
    if not refused:
        return []
    return [
        Problem(
            "pruning",
            f"modules of {', '.join(refused)} cannot be cut with the layers that they act on",
            ", ".join(KNOBS),
            "Use one of these methods, or no pruning.",
        )
    ]


def _of_heads(ratio: float, layout: ModelLayout, *, within: bool) -> list[Problem]:
    for layer in layout.layers:
        shape = head_shape(layer, layout)
        if shape is None:
            return [
                Problem(
                    "heads",
                    f"the projections of layer {layer.index} do not have the widths of {layout.heads} heads "
                    f"of {layout.head_dim} in {layout.kv_heads} groups",
                    "0 on this model",
                    "Set the ratio of heads to 0.",
                )
            ]
        if _normed_together(layer, layout):
            return [
                Problem(
                    "heads",
                    f"layer {layer.index} normalises all heads together",
                    "0 on this model",
                    "Set the ratio of heads to 0.",
                )
            ]
    groups, queries = layout.kv_heads, layout.heads // layout.kv_heads
    count, what, other = groups, "a layer none of its {} heads", ""
    if queries > 1 and within:
        count, what = queries, "a group none of its {} query heads"
    elif queries > 1:
        what = "a layer none of its {} groups of heads that share keys and values"
        other = ", or set shared_heads to queries" if dropped(ratio, queries) < queries else ""
    if dropped(ratio, count) < count:
        return []
    return [
        Problem(
            "heads",
            f"{ratio:g} leaves {what.format(count)}",
            f"below {(count - 0.5) / count:.3g}" if count > 1 else "below 0.5, which drops nothing",
            f"Lower the ratio of heads{other}.",
        )
    ]


def _normed_together(layer: LayerLayout, layout: ModelLayout) -> bool:
    """Whether a normalisation of queries or keys is wider than one head, so that it would have to be cut too.

    One of another name is taken for that of the attention's output, whose width stays (ALBERT). Were it not, the pruned
    block would not do what the masked one does, and `find_wiring` would refuse it.
    """
    inside = [norm for norm in layer.norms if norm.path.startswith(f"{layer.attention}.")]
    wide = [norm for norm in inside if norm.parameters > 2 * layout.head_dim]
    return any(_PROJECTED.search(norm.path.rpartition(".")[2]) for norm in wide)


def _of_units(ratio: float, scope: str, layout: ModelLayout) -> list[Problem]:
    widths = [ffn_units(layer) for layer in layout.layers]
    lacking = [layer.index for layer, width in zip(layout.layers, widths, strict=True) if width is None]
    if lacking:
        return [
            Problem(
                "ffn",
                f"the feed-forward part of layer {lacking[0]} has no way in and out of the same width",
                "0 on this model",
                "Set the ratio of ffn to 0.",
            )
        ]
    known = [width for width in widths if width is not None]
    narrowest = min(known, default=0)
    total = sum(known)
    leaves = total - dropped(ratio, total) >= len(known) if scope == "global" else dropped(ratio, narrowest) < narrowest
    if leaves:
        return []
    return [
        Problem(
            "ffn",
            f"{ratio:g} does not leave every layer one of its {narrowest} units",
            f"up to {1 - (1 if scope == 'global' else 0.51) / narrowest:.3g}",
            "Lower the ratio of ffn.",
        )
    ]


def _of_unknown_parts(layout: ModelLayout) -> list[Problem]:
    """Parameters of a block that are in no known module: whether they have to be cut too cannot be told."""
    for layer in layout.layers:
        known = sum(one.in_features * one.out_features + one.bias * one.out_features for one in layer.modules)
        unknown = layer.parameters - known - sum(norm.parameters for norm in layer.norms)
        if unknown:
            return [
                Problem(
                    "pruning",
                    f"layer {layer.index} has {unknown} parameters beside its projections and norms "
                    "(positions, experts, cross-attention), which may belong to heads or units",
                    "heads 0 and ffn 0 on this model",
                    "Prune modules and ranks alone, or choose another model.",
                )
            ]
    return []


def _facts(name: str, title: str, paper: str, summary: str) -> TreatmentFacts:
    return TreatmentFacts(name=name, title=title, paper=paper, summary=summary, settings=SETTINGS, defaults=DEFAULTS)


ALL: Sequence[Criterion] = (
    Criterion(
        _facts(
            "light-peft",
            "Light-PEFT",
            "Gu et al., Findings of ACL 2024",
            "Drops heads and FFN units by trained masks, and PEFT modules and ranks by their part in output and loss.",
        )
    ),
    Criterion(
        _facts(
            "random",
            "Random pruning",
            "control of Light-PEFT",
            "Drops as much as Light-PEFT after the same estimation, drawn from the trial's seed.",
        )
    ),
    Criterion(
        _facts(
            "magnitude",
            "Magnitude pruning",
            "control of Light-PEFT; Han et al., NeurIPS 2015 (arXiv:1506.02626)",
            "Drops as much as Light-PEFT after the same estimation, smallest norms of the weights first.",
        )
    ),
)
