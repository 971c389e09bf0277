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

    def tried(self) -> list[tuple[int, ...]]:
        """Choices at which a mistake shows, all that it may reach first: single ones, ends, some between."""
        every, least = tuple(range(self.depth)), self.spec.at_least
        found = [self.reached()]
        for mode in self.spec.modes:
            if mode == "top-k":
                steps = {round(least + step * (self.most - least) / 8) for step in range(9)}
                found += [every[self.depth - count :] for count in sorted(steps)]
            elif mode == "range":
                found += [every[first : first + least] for first in range(self.depth - least + 1)]
            else:
                found += [(index,) for index in every]
        return list(dict.fromkeys(found))

    def reached(self) -> tuple[int, ...]:
        """Every layer that some choice holds."""
        all_of_them = any(mode != "top-k" for mode in self.spec.modes) or self.spec.otherwise == "all"
        return tuple(range(0 if all_of_them else self.depth - self.most, self.depth))

    def layers(self, values: Mapping[str, Setting]) -> tuple[int, ...] | None:
        """The chosen layers, ascending; what `otherwise` says, or None, where the parameters are not active."""
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


def part_of(depth: int, parts: tuple[int, int] | None) -> tuple[int, ...]:
    """The layers of one of several nearly equal parts of the depth; all where there are no parts.

    Part 1 is nearest to the input; 12 layers in 3 parts are 0 to 3, 4 to 7 and 8 to 11.
    """
    part, count = parts or (1, 1)
    return tuple(range(depth * (part - 1) // count, depth * part // count))
