"""Carrying a candidate over from the model it is searched on to another one, by depth and by role."""

from __future__ import annotations

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout


def carried_layers(layers: tuple[int, ...], before: int, after: int) -> tuple[int, ...]:
    """The layers of a model of `after` layers that lie where `layers` lie in one of `before`, ascending.

    In a deeper model, every layer belongs to the one that its middle falls into, so that the same share of the depth is
    taken. In a shallower one, a layer is taken where the middle of at least one falls into it, so that none is lost.
    """
    taken = frozenset(layers)
    if after >= before:
        # Whole numbers, since (index + 0.5) * before / after may miss an edge by a rounding.
        return tuple(index for index in range(after) if (2 * index + 1) * before // (2 * after) in taken)
    return tuple(sorted({(2 * index + 1) * after // (2 * before) for index in taken}))


def carried(candidate: Candidate, before: ModelLayout, after: ModelLayout) -> Candidate:
    """The candidate on another model: its layers by relative depth, its modules by role, its sizes as they are.

    Raises:
        UserError: where a layer that would get an insertion has no module of a role of it.
    """
    insertions = []
    missing: list[Problem] = []
    for insertion in candidate.insertions:
        layers = carried_layers(insertion.layers, len(before.layers), len(after.layers))
        for role in insertion.modules:
            without = [index for index in layers if after.layers[index].module(role) is None]
            if without:
                found = f"layer {without[0]} of the {after.model_type} has no {role} to put {insertion.method} in"
                missing.append(Problem("predict_for", found, ", ".join(after.roles())))
        insertions.append(insertion.model_copy(update={"layers": layers}))
    if missing:
        raise UserError(*missing)
    return candidate.model_copy(update={"insertions": tuple(insertions)})
