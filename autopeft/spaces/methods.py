"""Which methods an insertion may have on a model, and what their knobs become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from autopeft.domain.candidate import Setting
from autopeft.domain.errors import Problem, unknown
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import MethodRules
from autopeft.domain.space import ChoiceDomain, Condition, Parameter
from autopeft.spaces.bound import BoundMethod, Unit
from autopeft.spaces.conditions import together
from autopeft.spaces.file import LayersParameter, MethodsParameter, ModulesParameter, SearchSpaceFile, reference
from autopeft.spaces.fitting import Asked, fit

Registry = Mapping[str, MethodRules]


@dataclass(frozen=True)
class MethodChoice:
    """A `methods` parameter bound to a model."""

    name: str
    when: tuple[Condition, ...]
    summary: str
    fits: Mapping[str, Mapping[int, BoundMethod]]
    """Per method, how each insertion that asks for the parameter has it."""
    knobs: Mapping[str, Parameter]
    """Per method with a knob that has several values, the parameter of the knob."""
    notices: tuple[str, ...] = field(default=())

    def units(self) -> list[Unit]:
        """The choice itself, then the knobs."""
        domain = ChoiceDomain(values=tuple(self.fits))
        choice = Parameter(name=self.name, domain=domain, when=self.when, summary=self.summary)
        return [
            Unit(self.name, self.when, (choice,)),
            *(Unit(knob.name, knob.when, (knob,)) for knob in self.knobs.values()),
        ]


def left_by_base(
    name: str, values: tuple[Setting, ...], layout: ModelLayout, methods: Registry
) -> tuple[tuple[Setting, ...], str]:
    """Those of a choice's methods that a base in few bits can have, and a notice of the others.

    How the base is loaded is the searcher's choice and not the file's, so that a value is left out where others remain.
    """
    plain = [one for one in values if (rules := methods.get(str(one))) is not None and not rules.facts.quantised]
    if not layout.quantised or not plain or len(plain) == len(values):
        return values, ""
    notice = f"Left out of '{name}': {', '.join(map(str, plain))} (cannot be trained on a base in 4 or 8 bits)."
    return tuple(one for one in values if one not in plain), notice


def named_methods(asked: Asked, layout: ModelLayout, methods: Registry) -> tuple[dict[str, BoundMethod], list[Problem]]:
    """The method that an insertion names, or those of the choice it names; each has to fit."""
    space, template = asked.space, asked.template
    parameter = reference(template.method)
    where = asked.where("method")
    names: Sequence[Setting | None] = (template.method,)
    if parameter is not None:
        where = space.where("parameters", parameter, "values")
        domain, otherwise = asked.domains.get(parameter), space.parameters[parameter].otherwise
        names = [*(domain.values if isinstance(domain, ChoiceDomain) else ()), otherwise]
        names = [name for name in names if name is not None and name in asked.assigned.get(parameter, (name,))]
    found: dict[str, BoundMethod] = {}
    problems: list[Problem] = []
    for name in dict.fromkeys(map(str, names)):
        rules = methods.get(name)
        if rules is None:
            problems.append(unknown(where, name, methods))
            continue
        if parameter is None:
            problems += _no_choice(asked, rules)
        method, wrong = fit(asked, rules, layout)
        problems += wrong
        if method is not None:
            found[name] = method
    return found, problems


def _no_choice(asked: Asked, rules: MethodRules) -> list[Problem]:
    """Choices that a fixed method does not take: they would change nothing."""
    facts, template = rules.facts, asked.template
    found = []
    if not facts.takes_layers and reference(template.layers) is not None:
        found.append(
            Problem(asked.where("layers"), f"{facts.name} takes no choice of layers", "all", "Write `layers: all`.")
        )
    if not facts.takes_modules and template.modules not in ("default", "all"):
        found.append(
            Problem(asked.where("modules"), f"{facts.name} takes no choice of modules", "default", "Leave it out.")
        )
    return found


def bind_methods(
    name: str,
    parameter: MethodsParameter,
    when: tuple[Condition, ...],
    asking: Sequence[Asked],
    others: Sequence[Asked],
    layout: ModelLayout,
    methods: Registry,
) -> tuple[MethodChoice | None, list[Problem]]:
    """The methods that model and task can take in every insertion that asks for this parameter.

    `others` are the insertions with another method: one that stands alone is left out where they can be there too.
    """
    space = asking[0].space
    where = space.where("parameters", name, "among")
    wanted = methods if parameter.among == "all" else dict.fromkeys(parameter.among)
    problems = [unknown(where, one, methods) for one in wanted if one not in methods]
    if problems:
        return None, problems
    fits: dict[str, Mapping[int, BoundMethod]] = {}
    knobs: dict[str, Parameter] = {}
    reasons: dict[str, list[str]] = {}
    for one in wanted:
        rules = methods[one]
        found, reason = _fits_all(rules, asking, layout)
        beside = [other for other in (*others, *asking[1:]) if together({name: (one,)}, other.assigned)]
        if found and rules.facts.alone and beside:
            reason = "stands alone, and there are other insertions"
        if reason:
            reasons.setdefault(reason, []).append(one)
            continue
        knob, title = f"{name}.{one}.{rules.facts.knob}", f"{rules.facts.knob} of {rules.facts.title}."
        steps = _spread(found, parameter.at_most, rules.facts.defaults.get(rules.facts.knob or ""))
        if len(steps) > 1:
            only = (*when, Condition(parameter=name, values=(one,)))
            domain = ChoiceDomain(values=steps, ordered=True)
            knobs[one] = Parameter(name=knob, domain=domain, when=only, summary=title)
        fits[one] = {
            asked.index: _with_knob(method, f"${knob}" if len(steps) > 1 else None if not steps else steps[0])
            for asked, method in zip(asking, found[steps[0] if steps else None], strict=True)
        }
    if not fits:
        said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        return None, [Problem(space.where("parameters", name), f"no method fits this model ({said})")]
    notices = [f"Left out of '{name}': {', '.join(names)} ({reason})." for reason, names in reasons.items()]
    return MethodChoice(name, when, parameter.summary, fits, knobs, tuple(notices)), []


def _fits_all(
    rules: MethodRules, asking: Sequence[Asked], layout: ModelLayout
) -> tuple[dict[Setting | None, list[BoundMethod]], str]:
    """Per value of the knob that fits everywhere, the method in each insertion; else why there is none."""
    facts = rules.facts
    given = any(facts.knob in asked.template.settings for asked in asking)
    ladder: Sequence[Setting | None] = (
        facts.ladder if facts.knob is not None and facts.ladder and not given else (None,)
    )
    found: dict[Setting | None, list[BoundMethod]] = {}
    reason = ""
    for value in ladder:
        bound = []
        for asked in asking:
            # Every choice of layers is tried with one step of the ladder, the ends of it with the others.
            ends = (asked.layers[0], min(asked.layers, key=len))
            method, problems = fit(replace(asked, layers=ends) if found else asked, rules, layout, value)
            if method is None:
                reason = reason or _reason(facts.name, problems[0])
                break
            bound.append(method)
        else:
            found[value] = bound
    return found, "" if found else reason


def _reason(method: str, problem: Problem) -> str:
    """Why a method is left out, without its name, so that equal reasons are told once."""
    return problem.found.removeprefix(f"{method} ").partition(" (and ")[0]


def _spread(found: Mapping[Setting | None, object], most: int | None, usual: Setting | None) -> tuple[Setting, ...]:
    """At most so many of the knob's values, both ends among them; a single one is the usual."""
    values = tuple(value for value in found if value is not None)
    if most is None or len(values) <= most:
        return values
    if most == 1:
        return (usual,) if usual in values and usual is not None else (values[len(values) // 2],)
    return tuple(values[round(index * (len(values) - 1) / (most - 1))] for index in range(most))


def _with_knob(method: BoundMethod, knob: Setting | None) -> BoundMethod:
    if knob is None or method.facts.knob is None:
        return method
    return BoundMethod(method.facts, method.modules, {**method.settings, method.facts.knob: knob})


def needing(
    space: SearchSpaceFile, name: str, chosen: Mapping[int, tuple[str, Mapping[str, BoundMethod]]]
) -> tuple[Condition | None, bool]:
    """Where a `layers` or `modules` parameter changes anything: a condition on the method, and whether it ever does.

    `chosen` has, for each insertion whose method a parameter chooses, that parameter and the methods.
    """
    layers = isinstance(space.parameters[name], LayersParameter)
    assert layers or isinstance(space.parameters[name], ModulesParameter)
    found: list[Condition] = []
    for index, template in enumerate(space.candidate.insertions):
        if reference(template.layers if layers else template.modules) != name:
            continue
        if index not in chosen:
            return None, True
        parameter, methods = chosen[index]
        takes = [
            one for one, fits in methods.items() if (fits.facts.takes_layers if layers else fits.facts.takes_modules)
        ]
        found.append(Condition(parameter=parameter, values=tuple(takes)))
    if not found or any(one.parameter != found[0].parameter for one in found):
        return None, True
    values = tuple(dict.fromkeys(value for one in found for value in one.values))
    every = {method for parameter, methods in chosen.values() if parameter == found[0].parameter for method in methods}
    if not values:
        return None, False
    return (None if every <= set(values) else Condition(parameter=found[0].parameter, values=values)), True
