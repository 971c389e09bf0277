"""Whether a method fits an insertion of a space on a model, by trying the extremes of what may be asked of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.errors import Problem, unknown
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import MethodRules
from autopeft.domain.space import Domain
from autopeft.spaces.bound import BoundMethod
from autopeft.spaces.conditions import Assignment, among, outside
from autopeft.spaces.file import InsertionTemplate, SearchSpaceFile, reference
from autopeft.spaces.modules import Roles, bind_roles
from autopeft.spaces.source import Place
from autopeft.spaces.values import canonical, contains, domain_text, extremes

_MOST_TRIED = 1024
"""Combinations of extremes that are tried per choice of modules; beyond, the settings vary one at a time."""


@dataclass(frozen=True)
class Asked:
    """What one insertion of a space may ask of a method on this model."""

    space: SearchSpaceFile
    index: int
    template: InsertionTemplate
    domains: Mapping[str, Domain]
    """Of every parameter whose values are known."""
    assigned: Assignment
    """What the conditions of the insertion leave to the parameters."""
    layers: tuple[tuple[int, ...], ...]
    """Choices of layers worth trying, the largest first."""
    module_sets: Mapping[str, Roles] | None
    """The sets of the parameter that chooses the modules; None where none does."""

    @property
    def place(self) -> Place:
        """Where the insertion stands in the file."""
        return ("candidate", "insertions", self.index)

    def where(self, *place: str) -> str:
        """File, line and key of a place in the insertion."""
        return self.space.where(*self.place, *place)

    def setting_where(self, name: str) -> str:
        """Where a person has to change a setting: at the parameter it refers to, or in the insertion."""
        if name not in self.template.settings:
            return self.where(name) if name in ("method", "layers", "modules") else self.where()
        parameter = reference(self.template.settings[name])
        if parameter is None:
            return self.where("settings", name)
        return self.space.where("parameters", parameter)

    def possible(self, value: Setting, method: str) -> tuple[Setting, ...]:
        """The values at which a setting of this method may go wrong."""
        name = reference(value)
        if name is None:
            return (value,)
        parameter = self.space.parameters[name]
        chosen = {**self.assigned, (reference(self.template.method) or ""): (method,)}
        domain, otherwise = self.domains[name], () if parameter.otherwise is None else (parameter.otherwise,)
        exists = all(among(chosen[parent], values) for parent, values in parameter.when.items() if parent in chosen)
        found = extremes(domain, self.assigned.get(name), self.template.unless.get(name, ())) if exists else ()
        return tuple(dict.fromkeys((*found, *outside(otherwise, self.template.unless.get(name, ())))))


def roles_of(asked: Asked, rules: MethodRules, layout: ModelLayout) -> tuple[dict[str, Roles], list[Problem]]:
    """The roles that the method may get, by name of the set ("" where nothing chooses), or why there are none."""
    template = asked.template
    if not rules.facts.takes_modules:
        return {"": ()}, []
    if asked.module_sets is not None:
        return dict(asked.module_sets), []
    if template.modules == "default":
        return {"": rules.default_modules(layout)}, []
    roles, lacking = bind_roles(template.modules, layout.roles())
    if roles and not lacking:
        return {"": roles}, []
    found = f"the model has no {', '.join(lacking)}" if lacking else "the layers have no linear module in common"
    return {}, [Problem(asked.where("modules"), found, ", ".join(role.value for role in layout.roles()))]


def fit(
    asked: Asked, rules: MethodRules, layout: ModelLayout, knob: Setting | None = None
) -> tuple[BoundMethod | None, list[Problem]]:
    """The method as the insertion may have it, or what is wrong with it, one problem per setting or place.

    `knob` takes the place of the default of the method's knob.
    """
    facts, given = rules.facts, asked.template.settings
    problems = [unknown(asked.where("settings", name), name, facts.settings) for name in given.keys() - facts.settings]
    defaults = facts.defaults if knob is None or facts.knob is None else {**facts.defaults, facts.knob: knob}
    written = {name: value for name, value in {**defaults, **given}.items() if name in facts.settings}
    problems += [
        Problem(
            asked.where("settings"),
            f"method {facts.name} needs the setting '{name}'",
            domain_text(domain),
            f"Add '{name}: VALUE' or '{name}: $PARAMETER'.",
        )
        for name, domain in facts.settings.items()
        if name not in written
    ]
    tried = {name: asked.possible(value, facts.name) for name, value in written.items()}
    for name, values in tried.items():
        if not values:
            found = f"is never in a candidate: its conditions leave no value to {written[name]}"
            problems.append(Problem(asked.where(), found, "", "Change its conditions or remove it."))
        wrong = [value for value in values if not contains(facts.settings[name], value)]
        if wrong:
            found = f"{', '.join(map(str, wrong))} is outside what '{name}' of method {facts.name} takes"
            problems.append(Problem(asked.setting_where(name), found, domain_text(facts.settings[name])))
    sets, lacking = roles_of(asked, rules, layout)
    problems += lacking
    if not problems:
        problems = _refused(asked, tuple(dict.fromkeys(sets.values())), tried, layout, rules)
    if problems:
        return None, problems
    chosen = asked.module_sets is not None and facts.takes_modules
    return BoundMethod(facts, None if chosen else sets[""], written), []


def _refused(
    asked: Asked,
    sets: Sequence[Roles],
    tried: Mapping[str, tuple[Setting, ...]],
    layout: ModelLayout,
    rules: MethodRules,
) -> list[Problem]:
    """What the method itself says, one problem per place, the rest counted.

    Every combination of extremes is tried in the largest choice of layers, one of them in every choice.
    """
    facts = rules.facts
    choices = asked.layers if facts.takes_layers else asked.layers[:1]
    every = [
        {name: canonical(value, facts.settings[name]) for name, value in settings.items()}
        for settings in combinations(tried)
    ]
    attempts = [(choices[0], settings) for settings in every]
    attempts += [(layers, every[0]) for layers in choices[1:]]
    found: dict[str, list[Problem]] = {}
    for modules in sets:
        for layers, settings in attempts:
            insertion = Insertion(method=facts.name, layers=layers, modules=modules, settings=settings)
            for problem in rules.problems(insertion, layout):
                same = found.setdefault(asked.setting_where(problem.where.rpartition(".")[2]), [])
                if problem not in same:
                    same.append(problem)
    return condensed(found)


def condensed(found: Mapping[str, list[Problem]]) -> list[Problem]:
    """One problem per place, the rest counted."""
    reports = []
    for where, same in found.items():
        more = f" (and {len(same) - 1} more like it)" if len(same) > 1 else ""
        first = same[0]
        reports.append(Problem(where, f"{first.found}{more}", first.allowed, first.next_step))
    return reports


def combinations(tried: Mapping[str, tuple[Setting, ...]]) -> list[dict[str, Setting]]:
    """Every combination of these values; where they are too many, one setting varies at a time."""
    count = 1
    for values in tried.values():
        count *= len(values)
    if count <= _MOST_TRIED:
        return [dict(zip(tried, combination, strict=True)) for combination in itertools.product(*tried.values())]
    base = {name: values[0] for name, values in tried.items() if values}
    return [{**base, name: value} for name, values in tried.items() for value in values]
