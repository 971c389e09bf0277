"""Ways of choosing layers, as primitive parameters and back: top k, a range, one switch per layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.domain.candidate import Setting
from autopeft.domain.space import ChoiceDomain, Condition, IntDomain, Parameter
from autopeft.spaces.file import LayersParameter


@dataclass(frozen=True)
class LayerChoice:
    """A `layers` parameter of a space, bound to a model of `depth` layers."""

    name: str
    spec: LayersParameter
    depth: int

    @property
    def most(self) -> int:
        """Most layers of `top-k` and `range`."""
        return self.depth if self.spec.at_most is None else self.spec.at_most

    def parameters(self, when: tuple[Condition, ...]) -> list[Parameter]:
        """What a sampler proposes for it: `NAME.mode`, `NAME.k`, `NAME.first`, `NAME.count`, `NAME.0`, `NAME.1` ..."""
        modes = tuple(dict.fromkeys(self.spec.modes))
        made: list[Parameter] = []
        if len(modes) > 1:
            made.append(
                Parameter(
                    name=f"{self.name}.mode", domain=ChoiceDomain(values=modes), when=when, summary=self.spec.summary
                )
            )
        count = IntDomain(low=self.spec.at_least, high=self.most)
        for mode in modes:
            inner = (*when, Condition(parameter=f"{self.name}.mode", values=(mode,))) if len(modes) > 1 else when
            if mode == "top-k":
                made.append(
                    Parameter(name=f"{self.name}.k", domain=count, when=inner, summary="Layers trained, from the top.")
                )
            elif mode == "range":
                first = IntDomain(low=0, high=self.depth - self.spec.at_least)
                made.append(
                    Parameter(name=f"{self.name}.first", domain=first, when=inner, summary="Lowest trained layer.")
                )
                made.append(
                    Parameter(
                        name=f"{self.name}.count",
                        domain=count,
                        when=inner,
                        summary="Layers trained from there on, as far as there are any.",
                    )
                )
            else:
                switch = ChoiceDomain(values=(False, True))
                made += [
                    Parameter(
                        name=f"{self.name}.{index}",
                        domain=switch,
                        when=inner,
                        summary=f"Whether layer {index} is trained.",
                    )
                    for index in range(self.depth)
                ]
        return made

    def layers(self, values: Mapping[str, Setting]) -> tuple[int, ...] | None:
        """The chosen layers, ascending; `otherwise`, or None, where the parameters are not active."""
        if f"{self.name}.k" in values:
            return tuple(range(self.depth - int(values[f"{self.name}.k"]), self.depth))
        if f"{self.name}.first" in values:
            first = int(values[f"{self.name}.first"])
            return tuple(range(first, min(self.depth, first + int(values[f"{self.name}.count"]))))
        if f"{self.name}.0" in values:
            return tuple(index for index in range(self.depth) if values[f"{self.name}.{index}"])
        if self.spec.otherwise is None:
            return None
        return tuple(range(self.depth)) if self.spec.otherwise == "all" else ()
