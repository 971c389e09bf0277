"""The way back from a candidate to the parameters of a space that stand for it, or for the nearest that it allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopeft.domain.candidate import Candidate, Insertion, Setting
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.space import ChoiceDomain, Domain, IntDomain, Parameter
from autopeft.spaces.bound import BoundInsertion, BoundSpace, BoundTreatment, Unit
from autopeft.spaces.file import LearningRateParameter, reference
from autopeft.spaces.layers import LayerChoice
from autopeft.spaces.values import contains, domain_text, same

_MOST = 512
"""Settings of the parameters that are tried for one candidate."""
_CLOSE = 0.01
"""Relative difference of learning rates below which they are one: spaces round to three digits."""


@dataclass(frozen=True)
class Change:
    """A number of the candidate that the space has not, and the nearest that it has."""

    place: str
    """The parameter, or the setting where none decides it."""
    setting: str
    """`learning_rate`, or the name of the setting."""
    wanted: Setting
    found: Setting
    allowed: str


@dataclass(frozen=True)
class Expressed:
    """A candidate as a point of a space."""

    parameters: dict[str, Setting]
    candidate: Candidate
    """What the parameters stand for."""
    changes: tuple[Change, ...]
    """How it differs from what was wanted; empty where it is the same."""


def express(wanted: Candidate, space: BoundSpace) -> Expressed:
    """The point of the space that stands for a candidate of its model, with numbers moved to the nearest allowed.

    Methods, layers, modules and names are met exactly or not at all.

    Raises:
        UserError: where the space has no such candidate; says which parameter is in the way and what it allows.
    """
    best: tuple[tuple[int, float], dict[str, Setting], _Compared] | None = None
    candidate: Candidate | None = None
    for count, values in enumerate(_settings(wanted, space)):
        found = space.resolve(values)
        if found is not None:
            compared = _compare(wanted, found, space)
            rank = len(compared.problems), compared.away
            if best is None or rank < best[0]:
                best, candidate = (rank, values, compared), found
        if count >= _MOST or (best is not None and best[0] == (0, 0.0)):
            break
    if best is None or candidate is None:
        raise UserError(Problem(f"space '{space.name}'", "no setting of its parameters puts in as much"))
    if best[2].problems:
        raise UserError(*best[2].problems)
    return Expressed(best[1], candidate, tuple(best[2].changes))


def _settings(wanted: Candidate, space: BoundSpace) -> Iterator[dict[str, Setting]]:
    """Values of the parameters that the candidate asks for, the likeliest first."""
    yield from _walk(wanted, space, 0, {})


def _walk(wanted: Candidate, space: BoundSpace, index: int, chosen: dict[str, Setting]) -> Iterator[dict[str, Setting]]:
    if index == len(space.units):
        yield chosen
        return
    unit = space.units[index]
    for own in _options(wanted, space, unit, chosen):
        yield from _walk(wanted, space, index + 1, {**chosen, **own})


def _options(
    wanted: Candidate, space: BoundSpace, unit: Unit, chosen: Mapping[str, Setting]
) -> list[dict[str, Setting]]:
    """What the parameters of one unit may be; `[{}]` where none of them exists."""
    if not all(when.parameter in chosen and chosen[when.parameter] in when.values for when in unit.when):
        return [{}]
    if unit.layers is not None:
        masks = _masks(wanted, space, unit.name)
        found = [one for mask in masks for one in chosen_layers(unit.layers, mask)]
        return found or [_all_layers(unit.layers)]
    (parameter,) = unit.parameters
    if unit.name in space.module_sets:
        return [{parameter.name: label} for label in _labels(wanted, space, unit.name)]
    if isinstance(space.file.parameters.get(unit.name), LearningRateParameter):
        return [{parameter.name: _position(wanted, space, unit.name, chosen)}]
    return [{parameter.name: value} for value in _values(wanted, space, parameter)]


def _using(space: BoundSpace, name: str, place: str) -> list[BoundInsertion]:
    """The insertions of the space whose layers or modules this parameter chooses."""
    return [one for one in space.insertions if reference(getattr(one.template, place)) == name]


def _held(wanted: Candidate, one: BoundInsertion) -> list[Insertion]:
    """The insertions of the candidate that an insertion of the space may stand for, those with most layers first."""
    found = [own for own in wanted.insertions if own.method in one.methods and set(own.layers) & set(one.part)]
    return sorted(found, key=lambda own: -len(set(own.layers) & set(one.part)))


def _masks(wanted: Candidate, space: BoundSpace, name: str) -> list[tuple[int, ...]]:
    if not wanted.insertions:
        return [()]
    held = [own for one in _using(space, name, "layers") for own in _held(wanted, one)]
    every = tuple(sorted({layer for own in held for layer in own.layers}))
    return list(dict.fromkeys([every, *(own.layers for own in held)])) if every else []


def chosen_layers(choice: LayerChoice, layers: Sequence[int]) -> list[dict[str, Setting]]:
    """The parameters of a choice of layers that choose these, in each of its modes that can."""
    found: list[dict[str, Setting]] = []
    count, several = len(layers), len(set(choice.spec.modes)) > 1
    contiguous = bool(layers) and list(layers) == list(range(layers[0], layers[0] + count))
    enough = choice.spec.at_least <= count <= choice.most
    for mode in dict.fromkeys(choice.spec.modes):
        own: dict[str, Setting] = {f"{choice.name}.mode": mode} if several else {}
        if mode == "bits":
            own |= {f"{choice.name}.{index}": index in layers for index in range(choice.depth)}
        elif not (contiguous and enough) or (mode == "top-k" and layers[-1] != choice.depth - 1):
            continue
        elif mode == "top-k":
            own[f"{choice.name}.k"] = count
        elif layers[0] > choice.depth - choice.spec.at_least:
            continue
        else:
            own |= {f"{choice.name}.first": layers[0], f"{choice.name}.count": count}
        found.append(own)
    return found


def _all_layers(choice: LayerChoice) -> dict[str, Setting]:
    """Where nothing suits, the most: what is wrong with it is said by comparing."""
    return chosen_layers(choice, range(choice.depth - choice.most, choice.depth))[0]


def _labels(wanted: Candidate, space: BoundSpace, name: str) -> list[str]:
    sets = space.module_sets[name]
    asked = [own.modules for one in _using(space, name, "modules") for own in _held(wanted, one)]
    found = [label for modules in dict.fromkeys(asked) for label, roles in sets.items() if roles == modules]
    return list(dict.fromkeys(found)) or [next(iter(sets))]


def _position(wanted: Candidate, space: BoundSpace, name: str, chosen: Mapping[str, Setting]) -> float:
    parameter = space.file.parameters[name]
    assert isinstance(parameter, LearningRateParameter)
    method = str(chosen[parameter.of])
    low, high = next(one.methods[method] for one in space.insertions if method in one.methods).facts.learning_rates
    return min(1.0, max(0.0, math.log(wanted.learning_rate / low) / math.log(high / low)))


def _values(wanted: Candidate, space: BoundSpace, parameter: Parameter) -> list[Setting]:
    """Of a scalar: what is asked for where the space refers to it; any value where it decides something else alone."""
    asked = list(_asked(wanted, space, parameter.name))
    near = [found for value in asked if (found := nearest(parameter.domain, value)) is not None]
    if near:
        return _distinct(near)
    domain = parameter.domain
    if isinstance(domain, ChoiceDomain):
        treatments = [one for one in (space.pruning, space.policy) if one is not None]
        parts: list[BoundInsertion | BoundTreatment] = [*space.insertions, *treatments]
        conditional = any(when.parameter == parameter.name for one in parts for when in (*one.when, *one.unless))
        return list(domain.values) if conditional else [domain.values[0]]
    return [domain.low]


def _asked(wanted: Candidate, space: BoundSpace, name: str) -> Iterator[Setting]:
    if reference(space.file.candidate.learning_rate) == name:
        yield wanted.learning_rate
    for one in space.insertions:
        held = _held(wanted, one)
        if reference(one.template.method) == name:
            yield from (own.method for own in held)
        if not held:
            yield from (value for unless in one.unless if unless.parameter == name for value in unless.values)
        for own in held:
            for key, value in one.methods[own.method].settings.items():
                if reference(value) == name and key in own.settings:
                    yield own.settings[key]
    treatments = {kind: (chosen, settings) for kind, chosen, settings in wanted.treatments()}
    for kind, treatment in (("pruning", space.pruning), ("policy", space.policy)):
        if treatment is not None:
            yield from _asked_of_treatment(treatment, treatments.get(kind), name)


def _asked_of_treatment(
    one: BoundTreatment, wanted: tuple[str, dict[str, Setting]] | None, name: str
) -> Iterator[Setting]:
    if reference(one.template.chosen) == name:
        yield wanted[0] if wanted else one.template.off
    if wanted and wanted[0] in one.kinds:
        for key, value in one.kinds[wanted[0]][1].items():
            if reference(value) == name and key in wanted[1]:
                yield wanted[1][key]


def nearest(domain: Domain, value: Setting) -> Setting | None:
    """The value of the domain that is nearest to this one, by ratio where all are above 0; None where none is alike."""
    if isinstance(domain, ChoiceDomain):
        own = next((one for one in domain.values if same(one, value)), None)
        numbers = [one for one in domain.values if not isinstance(one, bool | str)]
        if own is not None or isinstance(value, bool | str) or not numbers:
            return own
        if value > 0 and any(number > 0 for number in numbers):
            numbers = [number for number in numbers if number > 0]
        return min(numbers, key=lambda number: _away(number, value))
    if isinstance(value, bool | str):
        return None
    if contains(domain, value):
        return value
    inside = min(max(value, domain.low), domain.high)
    return round(inside) if isinstance(domain, IntDomain) else float(inside)


def _away(one: float, other: float) -> float:
    return abs(math.log2(one / other)) if one > 0 and other > 0 else abs(one - other)


def _distinct(values: Sequence[Setting]) -> list[Setting]:
    found: list[Setting] = []
    for value in values:
        if not any(same(value, one) for one in found):
            found.append(value)
    return found


@dataclass(frozen=True)
class _Compared:
    problems: list[Problem]
    changes: list[Change]
    away: float


def _compare(wanted: Candidate, found: Candidate, space: BoundSpace) -> _Compared:
    compared = _Compared([], [], 0.0)
    away = 0.0
    left = list(found.insertions)
    for own in wanted.insertions:
        alike = [one for one in left if one.method == own.method]
        same_place = [one for one in alike if one.layers == own.layers and one.modules == own.modules]
        there = next(iter([*same_place, *(one for one in alike if one.layers == own.layers), *alike]), None)
        if there is None:
            compared.problems.append(_no_method(own, wanted, space))
            continue
        left.remove(there)
        one = next((one for one in space.insertions if own.method in one.methods), None)
        if there.layers != own.layers:
            compared.problems.append(_no_layers(own, one, space))
        if there.modules != own.modules:
            compared.problems.append(_no_modules(own, there, one, space))
        settings = {} if one is None else one.methods[own.method].settings
        away += _of_settings(own.method, own.settings, there.settings, settings, space, compared)
    for more in left:
        text = f"with this candidate, the space puts in {more.method} as well"
        compared.problems.append(Problem(f"space '{space.name}'", text))
    theirs = {kind: (name, settings) for kind, name, settings in found.treatments()}
    ours = {kind: (name, settings) for kind, name, settings in wanted.treatments()}
    for kind, treatment in (("pruning", space.pruning), ("policy", space.policy)):
        chosen, got = ours.get(kind), theirs.get(kind)
        if (chosen and chosen[0]) != (got and got[0]):
            off = treatment.template.off if treatment is not None else "none"
            where = (reference(treatment.template.chosen) if treatment else None) or kind
            allowed = ", ".join([off, *(treatment.kinds if treatment else ())])
            compared.problems.append(Problem(where, f"{chosen[0] if chosen else off} is not one of them", allowed))
        elif chosen and got:
            settings = treatment.kinds[chosen[0]][1] if treatment is not None else {}
            away += _of_settings(chosen[0], chosen[1], got[1], settings, space, compared)
    apart = abs(math.log(found.learning_rate / wanted.learning_rate))
    if apart > _CLOSE:
        place = reference(space.file.candidate.learning_rate) or "learning_rate"
        allowed = _allowed(space, place, found.learning_rate)
        compared.changes.append(Change(place, "learning_rate", wanted.learning_rate, found.learning_rate, allowed))
        away += apart
    return _Compared(compared.problems, compared.changes, away)


def _of_settings(
    method: str,
    wanted: Mapping[str, Setting],
    found: Mapping[str, Setting],
    settings: Mapping[str, Setting],
    space: BoundSpace,
    compared: _Compared,
) -> float:
    """What is different, added to `compared`; how far apart the numbers are."""
    away = 0.0
    for key, value in wanted.items():
        other = found.get(key)
        if other is None or same(value, other):
            continue
        place = reference(settings.get(key)) or key
        allowed = _allowed(space, place, other)
        if isinstance(value, bool | str) or isinstance(other, bool | str):
            compared.problems.append(Problem(place, f"{key} of {method} is {value}", allowed))
            continue
        compared.changes.append(Change(place, key, value, other, allowed))
        away += _away(float(value), float(other))
    return away


def _allowed(space: BoundSpace, name: str, otherwise: Setting) -> str:
    domains = {parameter.name: parameter.domain for parameter in space.parameters}
    domain = domains.get(name)
    if isinstance(space.file.parameters.get(name), LearningRateParameter):
        return "the usual range of the method"
    return f"always {otherwise}" if domain is None else domain_text(domain)


def _no_method(own: Insertion, wanted: Candidate, space: BoundSpace) -> Problem:
    known = sorted({name for one in space.insertions for name in one.methods})
    if own.method not in known:
        return Problem(f"space '{space.name}'", f"{own.method} is none of its methods", ", ".join(known))
    together = " + ".join(one.method for one in wanted.insertions)
    return Problem(f"space '{space.name}'", f"none of its candidates is {together}")


def _no_layers(own: Insertion, one: BoundInsertion | None, space: BoundSpace) -> Problem:
    name = None if one is None else reference(one.template.layers)
    choice = next((unit.layers for unit in space.units if unit.name == name), None)
    found = f"layers {', '.join(map(str, own.layers))} of {own.method} cannot be chosen"
    if choice is None:
        return Problem("layers", found, "always the same layers")
    ways = {"top-k": "the last k layers", "range": "neighbouring layers", "bits": "any layers"}
    allowed = " or ".join(ways[mode] for mode in dict.fromkeys(choice.spec.modes))
    numbers = "" if "bits" in choice.spec.modes else f", {choice.spec.at_least} to {choice.most} of {choice.depth}"
    return Problem(choice.name, found, allowed + numbers)


def _no_modules(own: Insertion, there: Insertion, one: BoundInsertion | None, space: BoundSpace) -> Problem:
    name = None if one is None else reference(one.template.modules)
    if name is None or name not in space.module_sets:
        return Problem("modules", f"{own.method} in {', '.join(own.modules)}", f"always {', '.join(there.modules)}")
    sets = ", ".join(f"{label} ({', '.join(roles)})" for label, roles in space.module_sets[name].items())
    return Problem(name, f"{own.method} in {', '.join(own.modules)} is none of the sets", sets)


__all__ = ["Change", "Expressed", "chosen_layers", "express", "nearest"]
