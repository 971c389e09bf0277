"""What is wrong with any insertion, whatever its method: places that the model lacks, settings out of range."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.method import MethodFacts
from autopeft.domain.space import ChoiceDomain, IntDomain


def problems_of(facts: MethodFacts, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    """Task, layers, roles and settings against what the method and the model take."""
    found = _places(facts, insertion, layout) + _settings(facts, insertion)
    if layout.task not in facts.tasks:
        allowed = ", ".join(sorted(facts.tasks))
        found.append(Problem("method", f"{facts.name} cannot be trained for {layout.task}", allowed, "Leave it out."))
    if layout.quantised and not facts.quantised:
        found.append(
            Problem("method", f"{facts.name} cannot be trained on a base in 4 or 8 bits", "", "Leave out --load-in.")
        )
    return found


def narrower_than(name: str, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    """A problem where the setting `name` is larger than the smaller side of a module that the insertion names."""
    value = insertion.settings.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        return []
    sides = {
        (min(module.in_features, module.out_features), role)
        for index in insertion.layers
        if 0 <= index < len(layout.layers)
        for role in insertion.modules
        if (module := layout.layers[index].module(role)) is not None
    }
    low = sorted(side for side in sides if side[0] < value)
    if not low:
        return []
    side, role = low[0]
    return [
        Problem(
            name,
            f"{value} is larger than the smaller side of {role}, which is {side}",
            f"1 to {side}",
            f"Lower the {name} or leave {role} out.",
        )
    ]


def layers_without(lacking: Sequence[int], layout: ModelLayout, what: str) -> str:
    """`layer 0, 2 has no WHAT`, or `no layer of this model has any WHAT` in place of all their numbers."""
    if len(lacking) == len(layout.layers):
        return f"no layer of this model has any {what}"
    return f"layer {_listed(lacking)} has no {what}"


def _places(facts: MethodFacts, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
    found = []
    depth = len(layout.layers)
    outside = [index for index in insertion.layers if not 0 <= index < depth]
    if outside:
        found.append(
            Problem(
                "layers",
                f"layer {_listed(outside)} is not in the model, which has {depth}",
                f"0 to {depth - 1}",
                "Leave it out.",
            )
        )
    elif not facts.takes_layers and insertion.layers != tuple(range(depth)):
        found.append(Problem("layers", f"{facts.name} takes no choice of layers", "all", "Write `layers: all`."))
    if not facts.takes_modules:
        if insertion.modules:
            found.append(Problem("modules", f"{facts.name} takes no choice of modules", "none", "Leave them out."))
        return found
    for role in insertion.modules:
        lacking = [index for index in insertion.layers if 0 <= index < depth and not layout.layers[index].module(role)]
        if lacking:
            found.append(
                Problem(
                    "modules",
                    layers_without(lacking, layout, role),
                    _listed(layout.roles()),
                    "Choose roles that every layer has.",
                )
            )
    if insertion.layers and not insertion.modules:
        found.append(Problem("modules", "no module is chosen", _listed(layout.roles()), "Choose some."))
    return found


def _settings(facts: MethodFacts, insertion: Insertion) -> list[Problem]:
    found = []
    for name, domain in facts.settings.items():
        value = insertion.settings.get(name)
        if isinstance(domain, ChoiceDomain):
            if value not in domain.values:
                found.append(Problem(name, _said(value), _listed(domain.values), f"Choose a {name}."))
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = not isinstance(domain, IntDomain) or isinstance(value, int)
        if not number or not whole or not domain.low <= float(value or 0) <= domain.high:
            found.append(Problem(name, _said(value), f"{domain.low:g} to {domain.high:g}", f"Change {name}."))
    found += [
        Problem(name, f"the method {facts.name} has no such setting", ", ".join(facts.settings), "Remove it.")
        for name in insertion.settings
        if name not in facts.settings
    ]
    return found


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _said(value: Setting | None) -> str:
    return "is missing" if value is None else f"{value!r} is not allowed"
