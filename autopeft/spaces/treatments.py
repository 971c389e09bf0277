"""Pruning and training policy of a space, bound to a model: which names and settings fit which insertions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopeft.domain.candidate import Candidate, Insertion, Policy, Pruning, Setting
from autopeft.domain.errors import Problem, unknown
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import MethodRules, TreatmentRules
from autopeft.domain.space import ChoiceDomain, Domain
from autopeft.spaces.bound import BoundInsertion, BoundTreatment
from autopeft.spaces.conditions import Assignment, among, assignment, conditions, outside, together
from autopeft.spaces.file import SearchSpaceFile, Treatment, reference
from autopeft.spaces.fitting import Asked, combinations, condensed, roles_of
from autopeft.spaces.source import Place
from autopeft.spaces.values import canonical, contains, domain_text, extremes

Registry = Mapping[str, TreatmentRules]


@dataclass(frozen=True)
class _Kind:
    """One name that the treatment may have, and what it then may be."""

    rules: TreatmentRules
    assigned: Assignment
    written: Mapping[str, Setting]
    tried: Mapping[str, tuple[Setting, ...]]

    def settings(self) -> Iterator[dict[str, Setting]]:
        """Combinations of the settings at which a mistake shows."""
        domains = self.rules.facts.settings
        for chosen in combinations(self.tried):
            yield {name: canonical(value, domains[name]) for name, value in sorted(chosen.items())}


def bind_treatments(
    space: SearchSpaceFile,
    domains: Mapping[str, Domain],
    asked: Sequence[Asked],
    insertions: Sequence[BoundInsertion],
    layout: ModelLayout,
    methods: Mapping[str, MethodRules],
    registries: Mapping[str, Registry],
) -> tuple[dict[str, BoundTreatment], list[Problem]]:
    """The treatments of the space by key (`pruning`, `policy`), and what is wrong with them.

    Names and settings are checked first. Then the rules are asked about every insertion that can be there with the
    treatment, by each of its methods, at the extremes of the treatment's settings; about all of them at once; and
    about pruning and policy together.
    """
    found: dict[str, BoundTreatment] = {}
    kinds: dict[str, dict[str, _Kind]] = {}
    problems: list[Problem] = []
    for key, template in space.candidate.treatments().items():
        kinds[key], wrong = _kinds(space, domains, key, template, registries[key])
        problems += wrong
        found[key] = BoundTreatment(
            template,
            {name: (kind.rules.facts, kind.written) for name, kind in kinds[key].items()},
            conditions(template.when),
            conditions(template.unless),
        )
    if problems:
        return found, problems
    beside = list(_insertions(asked, insertions, layout, methods))
    for key, one in kinds.items():
        for kind in one.values():
            problems += _refused(space, key, kind, beside, kinds, layout)
    return found, problems


def _kinds(
    space: SearchSpaceFile, domains: Mapping[str, Domain], key: str, template: Treatment, registry: Registry
) -> tuple[dict[str, _Kind], list[Problem]]:
    place: Place = ("candidate", key)
    parameter = reference(template.chosen)
    where = space.where(*place, template.names)
    names: tuple[str, ...] = (template.chosen,)
    otherwise: Setting | None = None
    if parameter is not None:
        domain, otherwise = domains.get(parameter), space.parameters[parameter].otherwise
        where = space.where("parameters", parameter, "values")
        values = domain.values if isinstance(domain, ChoiceDomain) else ()
        allowed = assignment(space, template, domains).get(parameter, values)
        names = tuple(dict.fromkeys(map(str, (*among(values, allowed), *(() if otherwise is None else (otherwise,))))))
    names = tuple(name for name in names if name != template.off)
    problems = [unknown(where, name, (template.off, *registry)) for name in names if name not in registry]
    known = [name for name in names if name in registry]
    every = {setting for name in known for setting in registry[name].facts.settings}
    if not problems:
        problems += [
            unknown(space.where(*place, "settings", setting), setting, every)
            for setting in template.settings
            if setting not in every
        ]
    kinds: dict[str, _Kind] = {}
    for name in known:
        chosen = template
        if parameter is not None and name != otherwise:
            chosen = template.model_copy(update={"when": {**template.when, parameter: (name,)}})
        assigned = assignment(space, chosen, domains)
        facts = registry[name].facts
        written = {one: template.settings.get(one, facts.defaults[one]) for one in facts.settings}
        tried: dict[str, tuple[Setting, ...]] = {}
        for setting, value in written.items():
            tried[setting], wrong = _possible(space, domains, chosen, assigned, name, value)
            outlying = [one for one in tried[setting] if not contains(facts.settings[setting], one)]
            if outlying:
                said = f"{', '.join(map(str, outlying))} is outside what '{setting}' of {name} takes"
                wrong.append(Problem(_where(space, key, template, setting), said, domain_text(facts.settings[setting])))
            problems += wrong
        kinds[name] = _Kind(registry[name], assigned, written, tried)
    return kinds, problems


def _possible(
    space: SearchSpaceFile,
    domains: Mapping[str, Domain],
    template: Treatment,
    assigned: Assignment,
    kind: str,
    value: Setting,
) -> tuple[tuple[Setting, ...], list[Problem]]:
    """The values of a setting at which a mistake shows; a problem where it may have none."""
    name = reference(value)
    if name is None:
        return (value,), []
    parameter = space.parameters[name]
    always = all(
        parent in assigned and not outside(assigned[parent], values) for parent, values in parameter.when.items()
    )
    if not always and parameter.otherwise is None:
        return (), [
            Problem(
                space.where("parameters", name),
                f"'{name}' has no value in some candidates with {kind}, which needs one",
                "",
                "Give it `otherwise: VALUE`, or let its `when` name what chooses the policy or criterion.",
            )
        ]
    never = template.unless.get(name, ())
    ever = all(among(assigned[parent], values) for parent, values in parameter.when.items() if parent in assigned)
    found = extremes(domains[name], assigned.get(name), never) if ever else ()
    otherwise = () if always or parameter.otherwise is None else (parameter.otherwise,)
    return tuple(dict.fromkeys((*found, *outside(otherwise, never)))), []


def _insertions(
    asked: Sequence[Asked],
    insertions: Sequence[BoundInsertion],
    layout: ModelLayout,
    methods: Mapping[str, MethodRules],
) -> Iterator[tuple[int, Assignment, Insertion]]:
    """Each insertion by each of its methods, in each choice of layers, with the values that it leaves to parameters."""
    for one, bound in zip(asked, insertions, strict=True):
        parameter, modules = reference(one.template.method), reference(one.template.modules)
        for name, method in bound.methods.items():
            sets, _ = roles_of(one, methods[name], layout)
            written = {}
            for key, value in method.settings.items():
                values = one.possible(value, name) if key in one.template.settings else ()
                some = values[0] if values else value if reference(value) is None else method.facts.defaults[key]
                written[key] = canonical(some, method.facts.settings[key])
            chosen = {**one.assigned, **({parameter: (name,)} if parameter is not None else {})}
            for label, roles in sets.items():
                chosen |= {modules: (label,)} if modules is not None and method.facts.takes_modules else {}
                for layers in one.layers if method.facts.takes_layers else one.layers[:1]:
                    yield (
                        one.index,
                        dict(chosen),
                        Insertion(method=name, layers=layers, modules=roles, settings=written),
                    )


def _refused(
    space: SearchSpaceFile,
    key: str,
    kind: _Kind,
    beside: Sequence[tuple[int, Assignment, Insertion]],
    kinds: Mapping[str, Mapping[str, _Kind]],
    layout: ModelLayout,
) -> list[Problem]:
    """What the rules say, one problem per place, the rest counted."""
    template = space.candidate.treatments()[key]
    there = [(index, one) for index, assigned, one in beside if together(assigned, kind.assigned)]
    first: dict[int, Insertion] = {}
    for index, one in there:
        first.setdefault(index, one)
    whole = tuple(first.values())
    every = list(kind.settings())
    attempts: list[tuple[tuple[Insertion, ...], dict[str, Setting], dict[str, Policy | Pruning]]] = []
    if whole or key == "pruning":
        attempts += [((one,), every[0], {}) for _, one in there]
        attempts += [(whole, settings, {}) for settings in every]
    other = "policy" if key == "pruning" else "pruning"
    for second in kinds.get(other, {}).values():
        if together(kind.assigned, second.assigned) and attempts:
            attempts += [(whole, every[0], {other: _treated(other, second, next(second.settings()))})]
    found: dict[str, list[Problem]] = {}
    for insertions, settings, more in attempts:
        treated = {**more, key: _treated(key, kind, settings)}
        candidate = Candidate.model_validate({"insertions": insertions, "learning_rate": 1e-3, **treated})
        for problem in kind.rules.problems(candidate, layout):
            same = found.setdefault(_where(space, key, template, problem.where), [])
            if problem not in same:
                same.append(problem)
    return condensed(found)


def _treated(key: str, kind: _Kind, settings: dict[str, Setting]) -> Policy | Pruning:
    name = kind.rules.facts.name
    return Policy(name=name, settings=settings) if key == "policy" else Pruning(criterion=name, settings=settings)


def _where(space: SearchSpaceFile, key: str, template: Treatment, setting: str) -> str:
    """Where a person has to change a setting: at the parameter that it refers to, or at the treatment."""
    if setting not in template.settings:
        return space.where("candidate", key)
    parameter = reference(template.settings[setting])
    if parameter is None:
        return space.where("candidate", key, "settings", setting)
    return space.where("parameters", parameter)
