"""A search space bound to one model: parameters for samplers, and candidates out of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopeft.domain.candidate import Candidate, Insertion, Setting
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import MethodRules
from autopeft.domain.space import ChoiceDomain, Condition, Domain, Parameter
from autopeft.spaces import counting
from autopeft.spaces import values as checked
from autopeft.spaces.file import (
    InsertionTemplate,
    LayersParameter,
    ModulesParameter,
    SearchSpaceFile,
    Values,
    reference,
)
from autopeft.spaces.fitting import InsertionOptions, misfits
from autopeft.spaces.layers import LayerChoice
from autopeft.spaces.modules import Roles, bind_roles, bind_sets


@dataclass(frozen=True)
class BoundSpace:
    """Implements `autopeft.domain.space.Space`; made by `bind`."""

    file: SearchSpaceFile
    parameters: tuple[Parameter, ...]
    """Parents before children."""
    notices: tuple[str, ...]
    """What a person should know of the binding: module sets that the model cannot have."""
    depth: int
    """Layers of the model."""
    settings: Mapping[str, Mapping[str, Domain]] = field(repr=False)
    """Per method, the domain of each setting."""
    layer_choices: Mapping[str, LayerChoice] = field(repr=False)
    module_sets: Mapping[str, Mapping[str, Roles]] = field(repr=False)
    """Per `modules` parameter, the roles of each set that the model has."""
    fixed_modules: tuple[Roles, ...] = field(repr=False)
    """Per insertion, its roles where they are no parameter."""

    @property
    def name(self) -> str:
        return self.file.name

    def size(self) -> int | None:
        """How many different settings of the parameters there are, None where one is continuous.

        Candidates may be fewer: a range beyond the last layer and one up to it are the same.
        """
        return counting.size(self.parameters)

    def resolve(self, values: Mapping[str, Setting]) -> Candidate:
        """The candidate that these values of the active parameters stand for.

        Raises:
            UserError: where a value is missing, outside its domain, or of a parameter that is not active.
        """
        active = checked.check(self.parameters, values, self.name)
        insertions = []
        for template, roles in zip(self.file.candidate.insertions, self.fixed_modules, strict=True):
            if not all(one.parameter in active and active[one.parameter] in one.values for one in _when(template.when)):
                continue
            layers = self._layers(template, active)
            modules = self._modules(template, active, roles)
            if not layers or not modules:
                continue  # nothing to train here, whatever the settings say
            rules = self.settings[template.method]
            settings = {
                name: checked.canonical(self._value(value, active), rules[name])
                for name, value in sorted(template.settings.items())
            }
            insertions.append(Insertion(method=template.method, layers=layers, modules=modules, settings=settings))
        rate = self._value(self.file.candidate.learning_rate, active)
        return Candidate(insertions=tuple(insertions), learning_rate=float(rate))

    def _value(self, value: Setting, active: Mapping[str, Setting]) -> Setting:
        name = reference(value)
        if name is None:
            return value
        if name in active:
            return active[name]
        otherwise = self.file.parameters[name].otherwise
        assert otherwise is not None  # refused when the file was read
        return otherwise

    def _layers(self, template: InsertionTemplate, active: Mapping[str, Setting]) -> tuple[int, ...]:
        name = reference(template.layers)
        if name is not None:
            return self.layer_choices[name].layers(active) or ()
        if isinstance(template.layers, tuple):
            return tuple(sorted(set(template.layers)))
        return tuple(range(self.depth))

    def _modules(self, template: InsertionTemplate, active: Mapping[str, Setting], fixed: Roles) -> Roles:
        name = reference(template.modules)
        return fixed if name is None else self.module_sets[name][str(self._value(f"${name}", active))]


def bind(space: SearchSpaceFile, layout: ModelLayout, methods: Mapping[str, MethodRules]) -> BoundSpace:
    """Bind a space to a model: `layers` and `modules` become primitive parameters, and everything is checked.

    Raises:
        UserError: with every mistake: an unknown method or setting, a setting outside what the method takes, a layer
            that the model lacks, modules of which it has none, or what `MethodRules.problems` finds at the extremes
            of the settings (a rank larger than a layer).
    """
    problems: list[Problem] = []
    notices: list[str] = []
    parameters: list[Parameter] = []
    layer_choices: dict[str, LayerChoice] = {}
    module_sets: dict[str, Mapping[str, Roles]] = {}
    depth = len(layout.layers)
    for name, parameter in space.parameters.items():
        when = _when(parameter.when)
        if isinstance(parameter, LayersParameter):
            choice = LayerChoice(name, parameter, depth)
            if max(choice.most, parameter.at_least) > depth:
                key = "at_most" if choice.most > depth else "at_least"
                problems.append(
                    Problem(
                        space.where("parameters", name, key),
                        f"{max(choice.most, parameter.at_least)} layers are asked for",
                        f"1 to {depth}, as the model has {depth} layers",
                        "Leave it out for all layers of any model.",
                    )
                )
                continue
            layer_choices[name] = choice
            parameters += choice.parameters(when)
        elif isinstance(parameter, ModulesParameter):
            try:
                sets, told = bind_sets(parameter.sets, layout.roles(), space.where("parameters", name))
            except UserError as error:
                problems += error.problems
                continue
            if parameter.otherwise is not None and parameter.otherwise not in sets:
                problems.append(
                    Problem(
                        space.where("parameters", name, "otherwise"),
                        f"the model cannot have '{parameter.otherwise}', or has it under another name",
                        ", ".join(sets),
                    )
                )
            notices += told
            module_sets[name] = sets
            domain = ChoiceDomain(values=tuple(sets))
            parameters.append(Parameter(name=name, domain=domain, when=when, summary=parameter.summary))
        else:
            parameters.append(Parameter(name=name, domain=parameter.domain(), when=when, summary=parameter.summary))
    fixed: list[Roles] = []
    for index, template in enumerate(space.candidate.insertions):
        roles, found = _fixed_modules(space, index, template, layout)
        problems += found
        fixed.append(roles)
        named = reference(template.modules)
        offered: Sequence[Roles] = (roles,) if named is None else tuple(module_sets.get(named, {}).values())
        problems += misfits(space, InsertionOptions(index, template, offered), layout, methods)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return BoundSpace(
        file=space,
        parameters=tuple(parameters),
        notices=tuple(notices),
        depth=depth,
        settings={name: dict(rules.settings) for name, rules in methods.items()},
        layer_choices=layer_choices,
        module_sets=module_sets,
        fixed_modules=tuple(fixed),
    )


def _fixed_modules(
    space: SearchSpaceFile, index: int, template: InsertionTemplate, layout: ModelLayout
) -> tuple[Roles, list[Problem]]:
    if reference(template.modules) is not None:
        return (), []
    roles, lacking = bind_roles(template.modules, layout.roles())
    if not lacking and roles:
        return roles, []
    found = f"the model has no {', '.join(lacking)}" if lacking else "the layers have no linear module in common"
    allowed = ", ".join(role.value for role in layout.roles())
    return (), [Problem(space.where("candidate", "insertions", index, "modules"), found, allowed)]


def _when(when: Mapping[str, Values]) -> tuple[Condition, ...]:
    return tuple(Condition(parameter=parent, values=values) for parent, values in when.items())
