"""Insertions of one candidate that cannot be trained together, found before the first trial."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import MethodRules
from autopeft.spaces.bound import BoundMethod
from autopeft.spaces.conditions import Assignment, together
from autopeft.spaces.file import SearchSpaceFile, reference
from autopeft.spaces.fitting import Asked, roles_of
from autopeft.spaces.values import canonical


@dataclass(frozen=True)
class _Claim:
    """What one insertion takes with one method and one choice of modules, in all layers that it may get."""

    asked: Asked
    method: str
    alone: bool
    assigned: Assignment
    occupied: frozenset[str]


def conflicts(
    space: SearchSpaceFile,
    asked: Sequence[Asked],
    bound: Sequence[Mapping[str, BoundMethod]],
    layout: ModelLayout,
    methods: Mapping[str, MethodRules],
) -> list[Problem]:
    """One problem for every pair of insertions that can be there together and must not."""
    claims = [list(_claims(one, fits, layout, methods)) for one, fits in zip(asked, bound, strict=True)]
    found = []
    for one, other in itertools.combinations(claims, 2):
        problem = next((said for pair in itertools.product(one, other) if (said := _conflict(space, *pair))), None)
        if problem is not None:
            found.append(problem)
    return found


def _claims(
    asked: Asked, fits: Mapping[str, BoundMethod], layout: ModelLayout, methods: Mapping[str, MethodRules]
) -> Iterator[_Claim]:
    parameter, modules = reference(asked.template.method), reference(asked.template.modules)
    for name, method in fits.items():
        rules, facts = methods[name], method.facts
        sets, _ = roles_of(asked, rules, layout)
        settings = {key: _some_value(asked, name, key, value, facts.defaults) for key, value in method.settings.items()}
        written = {key: canonical(value, facts.settings[key]) for key, value in settings.items()}
        for label, roles in sets.items():
            chosen = {parameter: (name,)} if parameter is not None else {}
            if modules is not None and facts.takes_modules:
                chosen[modules] = (label,)
            insertion = Insertion(method=name, layers=asked.layers[0], modules=roles, settings=written)
            assigned = {**asked.assigned, **chosen}
            yield _Claim(asked, name, facts.alone, assigned, rules.occupied(insertion, layout))


def _some_value(asked: Asked, method: str, name: str, value: Setting, defaults: Mapping[str, Setting]) -> Setting:
    """A value that the setting may have; where a method is, does not depend on it."""
    if reference(value) is None:
        return value
    own = asked.template.settings.get(name)
    possible = () if own is None else asked.possible(own, method)
    return possible[0] if possible else defaults[name]


def _conflict(space: SearchSpaceFile, one: _Claim, other: _Claim) -> Problem | None:
    if not together(one.assigned, other.assigned):
        return None
    first, second = (f"insertion {claim.asked.index} ({claim.method})" for claim in (one, other))
    where = space.where("candidate", "insertions", other.asked.index)
    alone = next((claim for claim in (one, other) if claim.alone), None)
    if alone is not None:
        return Problem(
            where,
            f"{first} and {second} can be in one candidate, and {alone.method} has to be the only insertion",
            "",
            "Make them exclude each other with `when`, or remove one.",
        )
    shared = sorted(one.occupied & other.occupied)
    if not shared:
        return None
    more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
    return Problem(
        where,
        f"{first} and {second} can be in one candidate, and both take {shared[0]}{more}",
        "",
        "Give them different modules or layers, or make them exclude each other with `when`.",
    )
