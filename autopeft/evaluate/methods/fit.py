"""What several methods of peft cannot take of a model: kinds of modules, and widths that do not divide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout, ModuleLayout
from autopeft.evaluate.methods.method import modules_of

IN, OUT = "in_features", "out_features"
"""The sides of a module."""


def linear_only(name: str, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    """A problem where the insertion names a `Conv1D`, of a method that takes `nn.Linear` alone."""
    refused = _roles(module for module in modules_of(insertion, layout) if module.transposed)
    if not refused:
        return []
    taken = _roles(module for layer in layout.layers for module in layer.modules if not module.transposed)
    return [
        Problem(
            "modules",
            f"{', '.join(refused)}: weights that are held transposed (Conv1D) are not taken",
            ", ".join(taken) or "none",
            "Leave these modules out." if taken else f"Leave {name} out.",
        )
    ]


def divides(name: str, sides: Sequence[str], insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    """A problem where the setting `name` does not divide these sides of every module that the insertion names."""
    value = int(insertion.settings[name])
    modules = modules_of(insertion, layout)
    broken = {(_width(one, side), str(one.role)) for one in modules for side in sides if _width(one, side) % value}
    if not broken:
        return []
    width, role = min(broken)
    allowed = ", ".join(map(str, _common_divisors(modules, sides)))
    step = f"Choose one of these or leave {role} out." if allowed else f"Leave {role} out."
    return [Problem(name, f"{value} does not divide {width}, a width of {role}", allowed or "none", step)]


def wider_than(name: str, side: str, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    """A problem where the setting `name` is above this side of a module that the insertion names."""
    value = int(insertion.settings[name])
    narrow = {(_width(one, side), str(one.role)) for one in modules_of(insertion, layout) if _width(one, side) < value}
    if not narrow:
        return []
    width, role = min(narrow)
    return [Problem(name, f"{value} is above {width}, a width of {role}", f"up to {width}", f"Lower the {name}.")]


def too_many(name: str, per_unit: str, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    """A problem where the setting `name` asks for more entries of a weight than it has.

    `per_unit` is what one unit of the setting stands for: `entry`, or `sides` for in + out entries.
    """
    value = int(insertion.settings[name])
    found = set()
    for module in modules_of(insertion, layout):
        weights = module.in_features * module.out_features
        unit = module.in_features + module.out_features if per_unit == "sides" else 1
        if value * unit > weights:
            found.add((weights // unit, weights, str(module.role), value * unit))
    if not found:
        return []
    most, weights, role, asked = min(found)
    text = f"{value} asks for {asked} entries of {role}, which has {weights}"
    return [Problem(name, text, f"up to {most}", f"Lower the {name} or leave {role} out.")]


def group_of(size: int, modules: Sequence[ModuleLayout]) -> int:
    """The largest even number up to `size` that divides the outputs of all modules; 2 where their widths are odd."""
    fits = [one for one in range(2, size + 1, 2) if all(module.out_features % one == 0 for module in modules)]
    return fits[-1] if fits else 2


def _common_divisors(modules: Sequence[ModuleLayout], sides: Sequence[str]) -> list[int]:
    widths = {_width(module, side) for module in modules for side in sides}
    return [one for one in range(2, min(widths) + 1) if all(width % one == 0 for width in widths)]


def _width(module: ModuleLayout, side: str) -> int:
    return module.in_features if side == IN else module.out_features


def _roles(modules: Iterable[ModuleLayout]) -> list[str]:
    return sorted({str(module.role) for module in modules})
