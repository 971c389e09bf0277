"""Taking out of a live model what a decision drops: heads, FFN units, PEFT modules and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import LayerLayout, ModelLayout, Role
from autopeft.evaluate.composition import Composed
from autopeft.evaluate.pruning.decision import Decision
from autopeft.evaluate.pruning.live import (
    LiveSite,
    LoraSite,
    keep_inputs,
    keep_outputs,
    live_sites,
    plain,
    scale_inputs,
)
from autopeft.evaluate.pruning.shape import FFN_INTO, ffn_units, head_shape, sites
from autopeft.evaluate.pruning.wiring import Wiring, projection_rows, set_counts
from autopeft.evaluate.untouched import Untouched

T = TypeVar("T")


@dataclass(frozen=True)
class Folded:
    """Masks to multiply into the weights behind them, float32 on the CPU, of the unpruned model."""

    heads: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """By layer, `[query heads]`."""
    units: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """By layer, `[FFN width]`."""


@dataclass(frozen=True)
class Pruned:
    """What a pruned model needs to be made again out of the base model."""

    decision: Decision
    wiring: Wiring
    folded: Folded


def prune(
    untouched: Untouched,
    composed: Composed,
    insertions: Sequence[Insertion],
    layout: ModelLayout,
    pruned: Pruned,
) -> tuple[Composed, int]:
    """Prune a composed model in place; returns what it is composed of now, and the bytes that were copied.

    The shared model gets smaller weights in the place of its own, which are copied to the host first and come back
    with `Untouched.restore`. So the device holds the pruned model and nothing else, and what training after pruning
    needs is what it would need alone. Attributes and removed modules are kept by reference.
    """
    surgery = _Surgery(untouched, layout, pruned, live_sites(untouched.model, layout, sites(insertions, layout)))
    surgery.drop_modules()
    for layer in layout.layers:
        surgery.fold(layer)
        surgery.heads(layer)
        surgery.units(layer)
    surgery.drop_ranks()
    return surgery.composed(composed), surgery.copied_bytes


class _Surgery:
    def __init__(self, untouched: Untouched, layout: ModelLayout, pruned: Pruned, live: Mapping[str, LiveSite]) -> None:
        self._untouched = untouched
        self._model = untouched.model
        self._layout = layout
        self._pruned = pruned
        self._live = dict(live)
        self._copied: dict[int, int] = {}

    @property
    def copied_bytes(self) -> int:
        return sum(self._copied.values())

    def drop_modules(self) -> None:
        for key in [key for key in self._live if key not in self._pruned.decision.ranks]:
            self._live.pop(key).remove()

    def drop_ranks(self) -> None:
        for key, live in self._live.items():
            kept = self._pruned.decision.ranks[key]
            if len(kept) < live.site.ranks:
                live.keep_ranks(kept)

    def fold(self, layer: LayerLayout) -> None:
        folded = self._pruned.folded
        if layer.index in folded.heads:
            width = _known(head_shape(layer, self._layout)).head_dim
            self._scale(layer, Role.ATTENTION_OUTPUT, folded.heads[layer.index].repeat_interleave(width))
        if layer.index in folded.units:
            self._scale(layer, Role.FFN_OUT, folded.units[layer.index])

    def heads(self, layer: LayerLayout) -> None:
        if self._pruned.decision.heads is None:
            return
        shape = _known(head_shape(layer, self._layout, self._pruned.decision.within))
        kept = self._pruned.decision.heads[layer.index]
        if len(kept) == shape.parts:
            return
        for role, rows in projection_rows(shape, kept, self._pruned.wiring).items():
            self._outputs(layer, role, rows)
        self._inputs(layer, Role.ATTENTION_OUTPUT, shape.query_rows(kept))
        set_counts(self._model.get_submodule(layer.attention), shape.count(kept), self._pruned.wiring)

    def units(self, layer: LayerLayout) -> None:
        if self._pruned.decision.units is None:
            return
        kept = self._pruned.decision.units[layer.index]
        if len(kept) == ffn_units(layer):
            return
        for role in FFN_INTO:
            self._outputs(layer, role, kept)
        self._inputs(layer, Role.FFN_OUT, kept)

    def composed(self, before: Composed) -> Composed:
        """What is left of what was put in; the names of its tensors are as before."""
        alive = {live.site.path for live in self._live.values()}
        now = dict(self._model.named_parameters()).keys() | dict(self._model.named_buffers()).keys()
        return replace(
            before,
            modules=tuple(path for path in before.modules if path in alive),
            names=tuple(name for name in before.names if name in now),
        )

    def _outputs(self, layer: LayerLayout, role: Role, kept: Sequence[int]) -> None:
        found = layer.module(role)
        if found is None:
            return
        module = plain(self._model.get_submodule(found.path))
        self._copy(module.parameters())
        keep_outputs(module, kept)
        for live in self._loras(found.path):
            live.keep_outputs(kept)

    def _inputs(self, layer: LayerLayout, role: Role, kept: Sequence[int]) -> None:
        path = _known(layer.module(role)).path
        module = plain(self._model.get_submodule(path))
        self._copy([module.weight])
        keep_inputs(module, kept)
        for live in self._loras(path):
            live.keep_inputs(kept)

    def _scale(self, layer: LayerLayout, role: Role, factors: torch.Tensor) -> None:
        path = _known(layer.module(role)).path
        module = plain(self._model.get_submodule(path))
        self._copy([module.weight])
        scale_inputs(module, factors)
        for live in self._loras(path):
            scale_inputs(live.down, factors)

    def _loras(self, path: str) -> list[LoraSite]:
        return [live for live in self._live.values() if isinstance(live, LoraSite) and live.site.path == path]

    def _copy(self, parameters: Iterable[nn.Parameter]) -> None:
        """Into host memory, before the first change of each."""
        for parameter in parameters:
            if id(parameter) not in self._copied:
                self._untouched.keep([parameter])
                self._copied[id(parameter)] = parameter.numel() * parameter.element_size()


def _known(found: T | None) -> T:
    assert found is not None  # the rules refuse a model without
    return found
