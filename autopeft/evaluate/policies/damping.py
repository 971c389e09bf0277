"""Damping what a method adds in some layers, and setting it back exactly."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from autopeft.domain.layout import ModelLayout


class Damping:
    """The output scales of the adapters in each layer.

    They are the `scaling` of peft's LoRA layers, one number per adapter and module, and the `scale` of our bottleneck
    adapters. Other modules carry attributes of these names too (attention modules of transformers do); only the classes
    of the adapters count.
    """

    def __init__(self, base: Any, layout: ModelLayout) -> None:
        from peft.tuners.lora import LoraLayer

        from autopeft.evaluate.methods.bottleneck_modules import Bottleneck

        self._places: dict[int, list[Any]] = {}
        for layer in layout.layers:
            for module in base.get_submodule(layer.path).modules():
                if isinstance(module, LoraLayer | Bottleneck):
                    self._places.setdefault(layer.index, []).append(module)
        self.layers = tuple(sorted(self._places))
        """The layers in which there is something to damp, ascending."""

    @contextmanager
    def at(self, layers: Collection[int], factor: float) -> Iterator[None]:
        """Inside, what is added in these layers is multiplied by `factor`; afterwards every scale is what it was."""
        kept: list[tuple[Any, Any]] = []
        try:
            for layer in layers:
                for module in self._places.get(layer, ()):
                    scaling = getattr(module, "scaling", None)
                    if isinstance(scaling, dict):
                        kept.append((module, dict(scaling)))
                        scaling.update({name: value * factor for name, value in scaling.items()})
                    else:
                        kept.append((module, module.scale))
                        module.scale = module.scale * factor
            yield
        finally:
            for module, before in kept:
                if isinstance(before, dict):
                    module.scaling.update(before)
                else:
                    module.scale = before
