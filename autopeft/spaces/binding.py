"""Binding a search space to a model's layout: everything that the two must agree on is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.layout import ModelLayout, TaskName
from autopeft.domain.ports import MethodRules, TreatmentRules
from autopeft.domain.space import ChoiceDomain, Condition, Domain, FloatDomain, Parameter
from autopeft.spaces.bound import BoundInsertion, BoundMethod, BoundSpace, Unit
from autopeft.spaces.conditions import assignment, conditions
from autopeft.spaces.conflicts import conflicts
from autopeft.spaces.file import (
    ChoiceParameter,
    FileParameter,
    LayersParameter,
    LearningRateParameter,
    MethodsParameter,
    ModulesParameter,
    SearchSpaceFile,
    SizesParameter,
    reference,
)
from autopeft.spaces.fitting import Asked
from autopeft.spaces.layers import LayerChoice, part_of
from autopeft.spaces.methods import MethodChoice, bind_methods, left_by_base, named_methods, needing
from autopeft.spaces.modules import Roles, bind_sets
from autopeft.spaces.treatments import bind_treatments
from autopeft.spaces.values import contains, domain_text

__all__ = ["BoundSpace", "bind"]


def bind(
    space: SearchSpaceFile,
    layout: ModelLayout,
    methods: Mapping[str, MethodRules],
    policies: Mapping[str, TreatmentRules] = MappingProxyType({}),
    criteria: Mapping[str, TreatmentRules] = MappingProxyType({}),
) -> BoundSpace:
    """Bind a space to a model: layers, modules, sizes and methods become primitive parameters, and all is checked.

    Raises:
        UserError: with every mistake: an unknown method or setting, a setting outside what the method takes, a layer
            that the model lacks, modules of which it has none, what `MethodRules.problems` finds at the extremes of
            the settings (a rank larger than a layer), two insertions of one candidate that claim the same, or a
            policy or pruning that does not go with an insertion (`TreatmentRules.problems`).
    """
    binding = _Binding(space, layout, methods)
    for name, parameter in space.parameters.items():
        binding.parameter(name, parameter)
    binding.conditions()
    binding.methods()
    binding.refuse()
    insertions = binding.insertions()
    binding.problems += conflicts(space, binding.asked, [one.methods for one in insertions], layout, methods)
    binding.refuse()
    registries = {"pruning": criteria, "policy": policies}
    treatments, found = bind_treatments(space, binding.domains, binding.asked, insertions, layout, methods, registries)
    binding.problems += found
    binding.refuse()
    units = binding.units(insertions)
    # A language model's head is its own and stays as it is: with no insertion, nothing would be trained.
    headless = layout.task is TaskName.CAUSAL_LM or not layout.head_paths
    bound = BoundSpace(
        file=space,
        units=units,
        insertions=insertions,
        notices=tuple(binding.notices),
        depth=len(layout.layers),
        at_least=max(space.candidate.at_least, int(headless)),
        module_sets=binding.module_sets,
        pruning=treatments.get("pruning"),
        policy=treatments.get("policy"),
    )
    if bound.size() == 0:
        where = space.where("candidate", "insertions")
        raise UserError(Problem(where, f"no setting of the parameters has {bound.at_least} insertions or more"))
    return bound


@dataclass
class _Binding:
    """What is known of a space and a model while the two are brought together."""

    space: SearchSpaceFile
    layout: ModelLayout
    registry: Mapping[str, MethodRules]
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    domains: dict[str, Domain] = field(default_factory=dict)
    layer_choices: dict[str, LayerChoice] = field(default_factory=dict)
    module_sets: dict[str, Mapping[str, Roles]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    named: dict[int, Mapping[str, BoundMethod]] = field(default_factory=dict)
    choices: dict[str, MethodChoice] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return len(self.layout.layers)

    def refuse(self) -> None:
        """Raises the mistakes found so far."""
        if self.problems:
            raise UserError(*dict.fromkeys(self.problems))

    def parameter(self, name: str, parameter: FileParameter) -> None:
        """Learn the values of a parameter, where the methods do not decide them."""
        match parameter:
            case LayersParameter():
                self._layers(name, parameter)
            case ModulesParameter():
                self._modules(name, parameter)
            case SizesParameter():
                self.domains[name] = parameter.domain(self.layout.hidden_size)
            case LearningRateParameter():
                self.domains[f"{name}.position"] = FloatDomain(low=0.0, high=1.0)
            case MethodsParameter():
                pass
            case ChoiceParameter():
                self.domains[name] = self._choice(name, parameter)
            case _:
                self.domains[name] = parameter.domain()

    def _choice(self, name: str, parameter: ChoiceParameter) -> ChoiceDomain:
        """All values, less the methods that no base as it is loaded here can have."""
        domain = parameter.domain()
        if all(reference(one.method) != name for one in self.space.candidate.insertions):
            return domain
        kept, notice = left_by_base(name, domain.values, self.layout, self.registry)
        self.notices += [notice] if notice else []
        return domain.model_copy(update={"values": kept})

    def _layers(self, name: str, parameter: LayersParameter) -> None:
        choice = LayerChoice(name, parameter, self.depth)
        if max(choice.most, parameter.at_least) > self.depth:
            key = "at_most" if choice.most > self.depth else "at_least"
            self.problems.append(
                Problem(
                    self.space.where("parameters", name, key),
                    f"{max(choice.most, parameter.at_least)} layers are asked for",
                    f"1 to {self.depth}, as the model has {self.depth} layers",
                    "Leave it out for all layers of any model.",
                )
            )
            return
        self.layer_choices[name] = choice
        self.domains |= {one.name: one.domain for one in choice.parameters(())}

    def _modules(self, name: str, parameter: ModulesParameter) -> None:
        try:
            sets, told = bind_sets(parameter.sets, self.layout.roles(), self.space.where("parameters", name))
        except UserError as error:
            self.problems += error.problems
            return
        if parameter.otherwise is not None and parameter.otherwise not in sets:
            self.problems.append(
                Problem(
                    self.space.where("parameters", name, "otherwise"),
                    f"the model cannot have '{parameter.otherwise}', or has it under another name",
                    ", ".join(sets),
                )
            )
        self.notices += told
        self.module_sets[name] = sets
        self.domains[name] = ChoiceDomain(values=tuple(sets))

    def conditions(self) -> None:
        """Check the conditions whose values only the model decides."""
        every = [(("parameters", name, "when"), one.when) for name, one in self.space.parameters.items()]
        for index, one in enumerate(self.space.candidate.insertions):
            every.append((("candidate", "insertions", index, "when"), one.when))  # type: ignore[arg-type]
            every.append((("candidate", "insertions", index, "unless"), one.unless))  # type: ignore[arg-type]
        for key, treatment in self.space.candidate.treatments().items():
            every.append((("candidate", key, "when"), treatment.when))
            every.append((("candidate", key, "unless"), treatment.unless))
        for place, when in every:
            for parent, values in when.items():
                parameter, where = self.space.parameters.get(parent), self.space.where(*place, parent)
                if isinstance(parameter, MethodsParameter):
                    self.problems += [
                        unknown(where, str(value), self.registry) for value in values if value not in self.registry
                    ]
                elif isinstance(parameter, SizesParameter):
                    domain = self.domains[parent]
                    self.problems += [
                        Problem(where, f"on this model, '{parent}' is never {value}", domain_text(domain))
                        for value in values
                        if not contains(domain, value)
                    ]

    def methods(self) -> None:
        """Ask the methods whether they fit."""
        for index, template in enumerate(self.space.candidate.insertions):
            # Where layers or modules are refused already, the rest is looked at all the same.
            layers = self._tried(index) or (tuple(range(self.depth)),)
            modules = reference(template.modules)
            self.asked.append(
                Asked(
                    space=self.space,
                    index=index,
                    template=template,
                    domains=self.domains,
                    assigned=assignment(self.space, template, self.domains),
                    layers=layers,
                    module_sets=None if modules is None else self.module_sets.get(modules, {}),
                )
            )
        for asked in self.asked:
            if not isinstance(self._method_parameter(asked), MethodsParameter):
                self.named[asked.index], found = named_methods(asked, self.layout, self.registry)
                self.problems += found
        for name, parameter in self.space.parameters.items():
            if isinstance(parameter, MethodsParameter):
                asking = [asked for asked in self.asked if reference(asked.template.method) == name]
                others = [asked for asked in self.asked if reference(asked.template.method) != name]
                choice, found = bind_methods(
                    name, parameter, conditions(parameter.when), asking, others, self.layout, self.registry
                )
                self.problems += found
                if choice is not None:
                    self.choices[name] = choice
                    self.notices += choice.notices

    def _method_parameter(self, asked: Asked) -> FileParameter | None:
        return self.space.parameters.get(reference(asked.template.method) or "")

    def _tried(self, index: int) -> tuple[tuple[int, ...], ...]:
        """The choices of layers that an insertion is tried with; empty where the file asks for them amiss."""
        template = self.space.candidate.insertions[index]
        part = part_of(self.depth, template.parts())
        if not part:
            where = self.space.where("candidate", "insertions", index, "part")
            parts = (template.parts() or (1, 1))[1]
            self.problems.append(Problem(where, f"the model's {self.depth} layers are too few for {parts} parts"))
            return ()
        name = reference(template.layers)
        if name is not None:
            choice = self.layer_choices.get(name)
            tried = [] if choice is None else choice.tried()
        elif isinstance(template.layers, tuple):
            wrong = [one for one in template.layers if not 0 <= one < self.depth]
            where = self.space.where("candidate", "insertions", index, "layers")
            allowed = f"0 to {self.depth - 1}, as the model has {self.depth} layers"
            self.problems += [Problem(where, f"there is no layer {one}", allowed) for one in wrong]
            tried = [] if wrong else [tuple(sorted(set(template.layers)))]
            if not wrong and not set(tried[0]) & set(part):
                self.problems.append(Problem(where, f"none of these layers is in part {template.part}"))
        else:
            tried = [tuple(range(self.depth))]
        inside = (tuple(one for one in layers if one in part) for layers in tried)
        return tuple(dict.fromkeys(layers for layers in inside if layers))

    def insertions(self) -> tuple[BoundInsertion, ...]:
        """Every insertion with the methods it may have."""
        found = []
        for asked in self.asked:
            choice = self.choices.get(reference(asked.template.method) or "")
            chosen = {name: one[asked.index] for name, one in choice.fits.items()} if choice else None
            found.append(
                BoundInsertion(
                    template=asked.template,
                    methods=self.named[asked.index] if chosen is None else chosen,
                    when=conditions(asked.template.when),
                    unless=conditions(asked.template.unless),
                    part=part_of(self.depth, asked.template.parts()),
                )
            )
        return tuple(found)

    def units(self, insertions: tuple[BoundInsertion, ...]) -> tuple[Unit, ...]:
        """What the sampler proposes, in the order of the file but parents first."""
        chosen = {
            asked.index: (name, one.methods)
            for asked, one in zip(self.asked, insertions, strict=True)
            if (name := reference(asked.template.method)) is not None
        }
        found: list[Unit] = []
        for name, parameter in self.space.parameters.items():
            when = conditions(parameter.when)
            if isinstance(parameter, MethodsParameter):
                found += self.choices[name].units()
                continue
            if isinstance(parameter, LayersParameter | ModulesParameter):
                condition, ever = needing(self.space, name, chosen)
                if not ever:
                    self.notices.append(f"'{name}' is left out: no method that is left takes such a choice.")
                    continue
                when = (*when, condition) if condition is not None else when
            found.append(self._unit(name, parameter, when))
        return _parents_first(found)

    def _unit(self, name: str, parameter: FileParameter, when: tuple[Condition, ...]) -> Unit:
        choice = self.layer_choices.get(name)
        if choice is not None:
            return Unit(name, when, tuple(choice.parameters(when)), layers=choice)
        own = f"{name}.position" if isinstance(parameter, LearningRateParameter) else name
        made = Parameter(name=own, domain=self.domains[own], when=when, summary=parameter.summary)
        return Unit(name, when, (made,), otherwise=parameter.otherwise)


def _parents_first(units: list[Unit]) -> tuple[Unit, ...]:
    """The units in an order in which conditions ask only of earlier ones; else as they are."""
    found: list[Unit] = []
    left = list(units)
    while left:
        names = {unit.name for unit in left}
        free = (unit for unit in left if not any(one.parameter.removesuffix(".mode") in names for one in unit.when))
        unit = next(free, left[0])
        found.append(unit)
        left.remove(unit)
    return tuple(found)
