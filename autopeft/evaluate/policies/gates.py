"""Opening and closing layers for training: the one place that freezes parameters within a trial."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from autopeft.domain.layout import ModelLayout

if TYPE_CHECKING:
    from torch import nn


class Gates:
    """Which of a model's trainable parameters belong to which layer, and which layers train now.

    A parameter of a closed layer requires no gradient and holds none. So nothing is saved for it in the forward pass,
    the backward pass stops at the lowest open layer, and the optimiser passes it by. Parameters outside the layers (the
    head) always train; one that several layers share trains while any of them is open. The optimiser must be made
    before the first layer is closed, or it would never learn of its parameters.
    """

    def __init__(self, base: Any, layout: ModelLayout, trainable: Sequence[nn.Parameter]) -> None:
        """`base` is the model that `AutoModelFor…` returned; `trainable` is all that may train in the trial."""
        owners: dict[int, set[int]] = {}
        for layer in layout.layers:
            for parameter in base.get_submodule(layer.path).parameters():
                owners.setdefault(id(parameter), set()).add(layer.index)
        self._owned = [
            (parameter, frozenset(owners[id(parameter)])) for parameter in trainable if id(parameter) in owners
        ]
        self.layers: tuple[int, ...] = tuple(sorted({layer for _, layers in self._owned for layer in layers}))
        """The layers that hold something trainable, ascending."""
        heads = {id(part) for path in layout.head_paths for part in base.get_submodule(path).parameters()}
        outside = [part for part in trainable if id(part) not in owners and id(part) not in heads]
        self.below = bool(outside)
        """Whether something outside layers and head trains (embeddings): the backward pass then goes all the way."""
        self.open: frozenset[int] = frozenset(self.layers)

    def parameters(self, layer: int) -> list[nn.Parameter]:
        """What is trainable in a layer."""
        return [parameter for parameter, layers in self._owned if layer in layers]

    def set(self, layers: Collection[int]) -> None:
        """Let these layers train and no others.

        Raises:
            ValueError: where a layer holds nothing trainable.
        """
        self.open = frozenset(layers)
        if not self.open <= frozenset(self.layers):
            raise ValueError(f"layers {sorted(self.open - frozenset(self.layers))} hold nothing trainable")
        for parameter, owners in self._owned:
            train = not owners.isdisjoint(self.open)
            parameter.requires_grad_(train)
            if not train:
                parameter.grad = None
