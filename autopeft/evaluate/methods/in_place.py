"""Parameters of the base itself, trained in place: biases, norms, whole layers, the whole model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import LayerLayout, ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.evaluate.methods.checks import layers_without
from autopeft.evaluate.methods.method import Attached, Given, OwnMethod

if TYPE_CHECKING:
    from torch import nn


class InPlace(OwnMethod):
    """Trains some parameters of the base; nothing is added, so a trained model is as fast as the base.

    On a base in half precision each of them gives way to a float32 one of the same value while it is trained
    (`autopeft.evaluate.methods.in_place_modules`), because a learning rate times a gradient is mostly too small to
    change a number of 8 significant bits.
    """

    in_place = True
    trained: ClassVar[str] = "parameter"
    """What it looks for in a layer, for a message."""

    def attach(self, model: Any, layout: ModelLayout, insertion: Insertion, name: str, given: Given) -> Attached:
        """Find the parameters by what they are called in the untouched model, which is also their name here."""
        from autopeft.evaluate.methods.in_place_modules import in_single_precision

        chosen = dict(self.chosen(model, layout, insertion))
        paths = dict.fromkeys(path.rpartition(".")[0] for path in chosen)
        return Attached(tuple(paths), in_single_precision(model, chosen))

    @abstractmethod
    def chosen(self, model: Any, layout: ModelLayout, insertion: Insertion) -> Iterable[tuple[str, nn.Parameter]]:
        """The parameters of the base that it trains, with their full names."""

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """Layers in which there is nothing to train."""
        empty = [index for index in insertion.layers if not self.in_layer(layout.layers[index])]
        if not empty:
            return []
        which = layers_without(empty, layout, self.trained)
        return [Problem("method", f"{self.name} finds nothing to train: {which}", "", "Choose another method.")]

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """Sum over the layers of what the layout says of each (`in_layer`)."""
        return sum(self.in_layer(layout.layers[index]) for index in insertion.layers)

    @abstractmethod
    def in_layer(self, layer: LayerLayout) -> int:
        """How many parameters of the layer it trains."""


class BitFit(InPlace):
    """All biases of the layers (Ben Zaken et al., ACL 2022, section 3), those of their norms included."""

    trained = "bias"

    def in_layer(self, layer: LayerLayout) -> int:
        """The layer's biases."""
        return layer.biases

    def chosen(self, model: Any, layout: ModelLayout, insertion: Insertion) -> Iterable[tuple[str, nn.Parameter]]:
        """Parameters called `bias`."""
        return [
            (name, parameter)
            for name, parameter in _of_layers(model, layout, insertion)
            if name.rpartition(".")[2] == "bias"
        ]

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """The biases, `<module>.bias`; the linear modules themselves stay free for others."""
        layers = [layout.layers[index] for index in insertion.layers]
        modules = [module.path for layer in layers for module in layer.modules]
        norms = [norm.path for layer in layers for norm in layer.norms]
        return frozenset(f"{path}.bias" for path in modules + norms)


class LayerNorm(InPlace):
    """Weights and biases of the norms inside the layers (Zhao et al., ICLR 2024, section 2)."""

    trained = "norm with weights"

    def in_layer(self, layer: LayerLayout) -> int:
        """The parameters of the layer's norms."""
        return sum(norm.parameters for norm in layer.norms)

    def chosen(self, model: Any, layout: ModelLayout, insertion: Insertion) -> Iterable[tuple[str, nn.Parameter]]:
        """What the norms hold themselves."""
        return [
            (f"{norm.path}.{name}", parameter)
            for index in insertion.layers
            for norm in layout.layers[index].norms
            for name, parameter in model.get_submodule(norm.path).named_parameters(recurse=False)
        ]

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """The norms and their parameters."""
        return _norms(layout.layers[index] for index in insertion.layers)


class WholeLayers(InPlace):
    """Every parameter of the layers: with the last k of them, the usual tuning of the last k layers."""

    def in_layer(self, layer: LayerLayout) -> int:
        """All of the layer's parameters."""
        return layer.parameters

    def chosen(self, model: Any, layout: ModelLayout, insertion: Insertion) -> Iterable[tuple[str, nn.Parameter]]:
        """Everything in the layers."""
        return _of_layers(model, layout, insertion)

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """Every linear module of the layers, every bias and every norm."""
        layers = [layout.layers[index] for index in insertion.layers]
        modules = [module.path for layer in layers for module in layer.modules]
        return frozenset(modules) | frozenset(f"{path}.bias" for path in modules) | _norms(layers)


class WholeModel(WholeLayers):
    """Every parameter of the model, embeddings included: full fine-tuning, the usual point of reference."""

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """All parameters without those of the head, which every method trains."""
        return layout.parameters - layout.head_parameters

    def misfits(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """None: every model has parameters."""
        return []

    def chosen(self, model: Any, layout: ModelLayout, insertion: Insertion) -> Iterable[tuple[str, nn.Parameter]]:
        """Everything outside the head."""
        heads = tuple(f"{path}." for path in layout.head_paths)
        return [(name, parameter) for name, parameter in model.named_parameters() if not name.startswith(heads)]


def _of_layers(model: Any, layout: ModelLayout, insertion: Insertion) -> list[tuple[str, nn.Parameter]]:
    paths = [layout.layers[index].path for index in insertion.layers]
    return [
        (f"{path}.{name}", parameter)
        for path in paths
        for name, parameter in model.get_submodule(path).named_parameters()
    ]


def _norms(layers: Iterable[LayerLayout]) -> frozenset[str]:
    paths = [norm.path for layer in layers for norm in layer.norms]
    return frozenset(path + part for path in paths for part in ("", ".weight", ".bias"))


def _facts(name: str, title: str, paper: str, summary: str, **changes: Any) -> MethodFacts:
    return MethodFacts(
        name=name,
        title=title,
        paper=paper,
        summary=summary,
        settings={},
        takes_modules=False,
        library="autopeft",
        **changes,
    )


METHODS = (
    BitFit(
        _facts(
            "bitfit",
            "BitFit",
            "Ben Zaken et al., ACL 2022 (arXiv:2106.10199)",
            "The biases of the chosen layers, where the model has any.",
        )
    ),
    LayerNorm(
        _facts(
            "layernorm",
            "LayerNorm tuning",
            "Zhao et al., ICLR 2024 (arXiv:2312.11420)",
            "Weights and biases of the norms inside the chosen layers.",
        )
    ),
    WholeLayers(
        _facts(
            "full-layers",
            "Tuning of whole layers",
            "Lee et al. 2019 (arXiv:1911.03090)",
            "Every parameter of the chosen layers; with the last ones, what is known as last-k-layers tuning.",
            learning_rates=(5e-6, 1e-3),
        )
    ),
    WholeModel(
        _facts(
            "full",
            "Full fine-tuning",
            "Howard and Ruder, ACL 2018 (arXiv:1801.06146)",
            "Every parameter of the model, embeddings included.",
            takes_layers=False,
            learning_rates=(5e-6, 5e-4),
        )
    ),
)
