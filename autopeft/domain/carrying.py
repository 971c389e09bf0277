"""Carrying a candidate over from the model it is searched on to another one, by depth and by role."""

from __future__ import annotations

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout, Role


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


def rebound(candidate: Candidate, before: ModelLayout, after: ModelLayout) -> Candidate:
    """The candidate of one search as another one, on another model, can try it.

    As `carried`, but looser, since it is measured anew: a single layer stays a single one, so that the cheapest point
    of a front stays the cheapest; all modules, or all of a family, are all that the other model has; separate query,
    key and value are one fused matrix and the other way round.

    Raises:
        UserError: where nothing answers to a module there.
    """
    depths = len(before.layers), len(after.layers)
    insertions = [
        one.model_copy(
            update={
                "layers": _one_or_carried(one.layers, *depths),
                "modules": _modules(one.modules, before.roles(), after.roles()),
            }
        )
        for one in candidate.insertions
    ]
    return candidate.model_copy(update={"insertions": tuple(insertions)})


def _one_or_carried(layers: tuple[int, ...], before: int, after: int) -> tuple[int, ...]:
    there = carried_layers(layers, before, after)
    if len(layers) > 1 or before == 1 or len(there) < 2:
        return there
    # The lowest stays the lowest; of any other, the upper one, which needs no gradient below it.
    return there[:1] if layers[0] == 0 else there[-1:]


def _modules(modules: tuple[str, ...], before: tuple[Role, ...], after: tuple[Role, ...]) -> tuple[str, ...]:
    if not modules:
        return ()
    if set(modules) == set(before):
        return tuple(sorted(after))
    found: set[str] = set()
    missing = set(modules)
    for family in ("attention.", "ffn."):
        own = {role for role in before if role.startswith(family)}
        there = {role for role in after if role.startswith(family)}
        if own and own <= set(modules) and there:
            found |= there
            missing -= own
    for role in sorted(missing):
        others = {role} if role in after else _FUSED.get(role, frozenset()) & set(after)
        if not others:
            allowed = ", ".join(after)
            raise UserError(Problem("modules", f"the model has no {role}", allowed))
        found |= others
    return tuple(sorted(found))


_SEPARATE = frozenset((Role.QUERY, Role.KEY, Role.VALUE))
_FUSED: dict[str, frozenset[Role]] = {Role.QKV: _SEPARATE, **{role: frozenset((Role.QKV,)) for role in _SEPARATE}}
