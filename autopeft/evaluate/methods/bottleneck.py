"""Bottleneck adapters: two thin layers with a nonlinearity, behind a sublayer (serial) or beside it (parallel)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain, Domain, FloatDomain, IntDomain
from autopeft.evaluate.methods.method import Attached, Given, OwnMethod

if TYPE_CHECKING:
    from autopeft.evaluate.methods.bottleneck_modules import Bottleneck

ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
PLACES = (Role.ATTENTION_OUTPUT, Role.FFN_OUT)
"""The last linear module of each sublayer, which names the sublayer."""
_ENTRANCES = {
    Role.ATTENTION_OUTPUT: (Role.QUERY, Role.QKV),
    Role.FFN_OUT: (Role.FFN_IN, Role.FFN_GATE),
}
"""By sublayer, the first modules, any of which is given the sublayer's input."""
_SETTINGS: Mapping[str, Domain] = {
    "size": IntDomain(low=1, high=16384, log=True),
    "scale": FloatDomain(low=1e-3, high=1e3, log=True),
    "activation": ChoiceDomain(values=ACTIVATIONS),
}
_LADDER = (1, 3, 6, 12, 24, 48, 96, 192, 384, 768)


def _facts(name: str, title: str, paper: str, summary: str, defaults: Mapping[str, Setting]) -> MethodFacts:
    return MethodFacts(
        name=name,
        title=title,
        paper=paper,
        summary=summary,
        settings=_SETTINGS,
        defaults=defaults,
        knob="size",
        ladder=_LADDER,
        merges=False,
        quantised=True,
        library="autopeft",
        scales=True,
    )


class _Bottleneck(OwnMethod):
    """What both have in common: the places, and that the model's function is unchanged until they are trained."""

    in_place = False

    def default_modules(self, layout: ModelLayout) -> tuple[str, ...]:
        """After or beside the feed-forward sublayer; the attention where a model has no other."""
        found = [role for role in reversed(PLACES) if all(self._fits(layer, role) for layer in layout.layers)]
        return (found[0].value,) if found else ()

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Roles that are not the end of a sublayer, or sublayers without a known entrance."""
        allowed = [role.value for role in PLACES if all(self._fits(layer, role) for layer in layout.layers)]
        return [
            Problem(
                "modules",
                f"{self.name} cannot be put at {role}",
                ", ".join(allowed),
                "Name a sublayer by its last linear module.",
            )
            for role in insertion.modules
            if role not in PLACES or any(not self._fits(layout.layers[index], role) for index in insertion.layers)
        ]

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the places of size * (in + out) + size + out: two matrices and two biases."""
        size = int(insertion.settings["size"])
        widths = [self._widths(layout.layers[index], role) for index in insertion.layers for role in insertion.modules]
        return sum(size * (wide_in + wide_out) + size + wide_out for wide_in, wide_out in widths)

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """The place, for this method alone: nothing is wrapped, so others may act on the same linear module."""
        return frozenset(f"{self.name}:{path}" for path in layout.paths(insertion.layers, insertion.modules))

    def attach(self, model: Any, layout: ModelLayout, insertion: Insertion, name: str, given: Given) -> Attached:
        """An adapter per layer and place, below the block as `<name>.<role>`, and forward hooks on the sublayer."""
        from torch import nn

        from autopeft.evaluate.methods.bottleneck_modules import Bottleneck

        parameters = {}
        for index in insertion.layers:
            layer = layout.layers[index]
            adapters = nn.ModuleDict()
            for role in insertion.modules:
                wide_in, wide_out = self._widths(layer, role)
                adapter = Bottleneck(
                    wide_in,
                    wide_out,
                    int(insertion.settings["size"]),
                    float(insertion.settings["scale"]),
                    str(insertion.settings["activation"]),
                )
                adapter.like(next(model.get_submodule(layer.path).parameters()))
                self._hook(model, layer, role, adapter)
                adapters[role.replace(".", "_")] = adapter
                for part, parameter in adapter.named_parameters():
                    parameters[f"{index}.{role}.{part}"] = parameter
            model.get_submodule(layer.path).add_module(name, adapters)
        return Attached(layout.paths(insertion.layers, insertion.modules), parameters)

    def _fits(self, layer: LayerLayout, role: str) -> bool:
        return layer.module(role) is not None

    @abstractmethod
    def _widths(self, layer: LayerLayout, role: str) -> tuple[int, int]:
        """What goes in and what comes out."""

    @abstractmethod
    def _hook(self, model: Any, layer: LayerLayout, role: str, adapter: Bottleneck) -> None:
        """Let the adapter act at the sublayer."""


class Serial(_Bottleneck):
    """`h <- h + scale * (W_up f(W_down h + b_down) + b_up)` on the output h of a sublayer's last linear module.

    Form and places: Houlsby et al., ICML 2019, figure 2, who put one behind the attention's output projection and one
    behind the feed-forward sublayer, before the sublayer's residual connection and, in BERT, its layer norm. Pfeiffer
    et al., EACL 2021, keep the second alone: the default. Here it acts on the linear module's own output, so before
    the model's dropout there; Houlsby's code has it behind the dropout, which is the same in evaluation. The residual
    around the adapter is the paper's skip connection, and W_up = 0 its near-identity start.
    """

    def _widths(self, layer: LayerLayout, role: str) -> tuple[int, int]:
        width = _known(layer.module(role)).out_features
        return width, width

    def _hook(self, model: Any, layer: LayerLayout, role: str, adapter: Bottleneck) -> None:
        # First of the hooks, so that a parallel adapter at the same place is no part of its input in any order.
        model.get_submodule(_known(layer.module(role)).path).register_forward_hook(adapter.behind, prepend=True)


class Parallel(_Bottleneck):
    """`h <- sublayer(x) + scale * (W_up f(W_down x + b_down) + b_up)` with x the input of the sublayer.

    He et al., ICLR 2022, section 3.3 and table 1: the same input as the sublayer, the feed-forward one by default. A
    scale of 4 is that of their experiments and of AutoPEFT (Zhou et al., TACL 2024). x is what the sublayer's first
    linear module is given: behind the layer norm in models that normalise first. The sum is made at the output of its
    last linear module, before dropout and residual.
    """

    def _fits(self, layer: LayerLayout, role: str) -> bool:
        return layer.module(role) is not None and _entrance(layer, role) is not None

    def _widths(self, layer: LayerLayout, role: str) -> tuple[int, int]:
        return _known(_entrance(layer, role)).in_features, _known(layer.module(role)).out_features

    def _hook(self, model: Any, layer: LayerLayout, role: str, adapter: Bottleneck) -> None:
        entrance, end = _known(_entrance(layer, role)), _known(layer.module(role))
        model.get_submodule(entrance.path).register_forward_pre_hook(adapter.take)
        model.get_submodule(end.path).register_forward_hook(adapter.beside)


def _entrance(layer: LayerLayout, role: str) -> ModuleLayout | None:
    found = [layer.module(first) for first in _ENTRANCES[Role(role)]]
    return next((module for module in found if module is not None), None)


def _known(module: ModuleLayout | None) -> ModuleLayout:
    assert module is not None  # `misfits` says so before anything is put in
    return module


METHODS = (
    Serial(
        _facts(
            "serial",
            "Serial adapter",
            "Houlsby et al., ICML 2019 (arXiv:1902.00751); Pfeiffer et al., EACL 2021 (arXiv:2005.00247)",
            "Two thin layers with a nonlinearity behind a sublayer, around which its output also passes unchanged.",
            {"size": 48, "scale": 1.0, "activation": "relu"},
        )
    ),
    Parallel(
        _facts(
            "parallel",
            "Parallel adapter",
            "He et al., ICLR 2022 (arXiv:2110.04366)",
            "Two thin layers with a nonlinearity beside a sublayer, given the same input and added to its output.",
            {"size": 48, "scale": 4.0, "activation": "relu"},
        )
    ),
)
