"""Whether every candidate of a space fits the model, by trying the extremes of what it may ask for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem, unknown
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import MethodRules
from autopeft.domain.space import Domain
from autopeft.spaces.file import InsertionTemplate, LayersParameter, ModulesParameter, SearchSpaceFile, reference
from autopeft.spaces.modules import Roles
from autopeft.spaces.source import Place
from autopeft.spaces.values import canonical, contains, domain_text, extremes

_MOST_TRIED = 4096
"""Combinations of extremes that are tried per insertion; beyond, the settings vary one at a time."""


@dataclass(frozen=True)
class InsertionOptions:
    """One insertion of a space with the module roles it may get on this model."""

    index: int
    template: InsertionTemplate
    modules: Sequence[Roles]


def misfits(
    space: SearchSpaceFile, options: InsertionOptions, layout: ModelLayout, methods: Mapping[str, MethodRules]
) -> list[Problem]:
    """What is wrong with an insertion on this model, one problem per setting or layer."""
    template, place = options.template, ("candidate", "insertions", options.index)
    problems = _layers_out_of_range(space, place, template, layout)
    rules = methods.get(template.method)
    if rules is None:
        return [*problems, unknown(space.where(*place, "method"), template.method, methods)]
    tried: dict[str, tuple[Setting, ...]] = {}
    for name, value in template.settings.items():
        if name not in rules.settings:
            problems.append(unknown(space.where(*place, "settings", name), name, rules.settings))
            continue
        tried[name] = _possible(space, value)
        problems += _outside(space, _setting_place(space, place, template, name), name, tried[name], rules)
    for name, domain in rules.settings.items():
        if name not in template.settings:
            problems.append(
                Problem(
                    space.where(*place, "settings"),
                    f"method {template.method} needs the setting '{name}'",
                    domain_text(domain),
                    f"Add '{name}: VALUE' or '{name}: $PARAMETER'.",
                )
            )
    return problems or _refused(space, options, place, tried, layout, rules)


def _layers_out_of_range(
    space: SearchSpaceFile, place: Place, template: InsertionTemplate, layout: ModelLayout
) -> list[Problem]:
    if not isinstance(template.layers, tuple):
        return []
    depth = len(layout.layers)
    where = space.where(*place, "layers")
    return [
        Problem(where, f"there is no layer {index}", f"0 to {depth - 1}, as the model has {depth} layers")
        for index in template.layers
        if not 0 <= index < depth
    ]


def _possible(space: SearchSpaceFile, value: Setting) -> tuple[Setting, ...]:
    """The values at which a setting may go wrong."""
    name = reference(value)
    if name is None:
        return (value,)
    parameter = space.parameters[name]
    assert not isinstance(parameter, LayersParameter | ModulesParameter)  # refused when the file was read
    found = extremes(parameter.domain())
    return found if parameter.otherwise is None else (*found, parameter.otherwise)


def _setting_place(space: SearchSpaceFile, place: Place, template: InsertionTemplate, setting: str) -> Place:
    """Where a person has to change a setting: at the parameter it refers to, or in the insertion."""
    name = reference(template.settings.get(setting))
    return (*place, "settings", setting) if name is None else ("parameters", name)


def _outside(
    space: SearchSpaceFile, place: Place, name: str, tried: Sequence[Setting], rules: MethodRules
) -> list[Problem]:
    domain: Domain = rules.settings[name]
    wrong = [value for value in dict.fromkeys(tried) if not contains(domain, value)]
    if not wrong:
        return []
    found = f"{', '.join(map(str, wrong))} is outside what '{name}' of method {rules.name} takes"
    return [Problem(space.where(*place), found, domain_text(domain))]


def _refused(
    space: SearchSpaceFile,
    options: InsertionOptions,
    place: Place,
    tried: Mapping[str, tuple[Setting, ...]],
    layout: ModelLayout,
    rules: MethodRules,
) -> list[Problem]:
    """What the method itself says, at every combination of extremes; one problem per place, the rest counted."""
    template = options.template
    layers = template.layers if isinstance(template.layers, tuple) else tuple(range(len(layout.layers)))
    found: dict[str, list[Problem]] = {}
    for modules in options.modules:
        for settings in _combinations(tried):
            written = {name: canonical(value, rules.settings[name]) for name, value in settings.items()}
            insertion = Insertion(method=template.method, layers=layers, modules=modules, settings=written)
            for problem in rules.problems(insertion, layout):
                setting = problem.where.rpartition(".")[2]
                known = setting in template.settings
                target = _setting_place(space, place, template, setting) if known else place
                same = found.setdefault(space.where(*target), [])
                if problem not in same:
                    same.append(problem)
    reports = []
    for where, same in found.items():
        more = f" (and {len(same) - 1} more like it)" if len(same) > 1 else ""
        first = same[0]
        reports.append(Problem(where, f"{first.found}{more}", first.allowed, first.next_step))
    return reports


def _combinations(tried: Mapping[str, tuple[Setting, ...]]) -> list[dict[str, Setting]]:
    count = 1
    for values in tried.values():
        count *= len(values)
    if count <= _MOST_TRIED:
        return [dict(zip(tried, combination, strict=True)) for combination in itertools.product(*tried.values())]
    base = {name: values[0] for name, values in tried.items()}
    return [{**base, name: value} for name, values in tried.items() for value in values]
