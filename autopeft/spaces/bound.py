"""A search space bound to one model: parameters for samplers, and candidates out of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from autopeft.domain.candidate import Candidate, Insertion, Policy, Pruning, Setting
from autopeft.domain.method import MethodFacts, TreatmentFacts
from autopeft.domain.space import Condition, Parameter
from autopeft.spaces import counting
from autopeft.spaces import values as checked
from autopeft.spaces.file import InsertionTemplate, LearningRateParameter, SearchSpaceFile, Treatment, reference
from autopeft.spaces.layers import LayerChoice
from autopeft.spaces.modules import Roles


@dataclass(frozen=True)
class BoundMethod:
    """A method that an insertion may have, on this model."""

    facts: MethodFacts
    modules: Roles | None
    """Roles of the modules; None where a parameter chooses them."""
    settings: Mapping[str, Setting]
    """Every setting: values, and `$name` for a parameter's."""


@dataclass(frozen=True)
class BoundInsertion:
    """One insertion of the space with all the methods that it may have."""

    template: InsertionTemplate
    methods: Mapping[str, BoundMethod]
    when: tuple[Condition, ...]
    unless: tuple[Condition, ...]
    part: tuple[int, ...]
    """The layers that it may be in."""


@dataclass(frozen=True)
class BoundTreatment:
    """The pruning or the policy of the space with all the names that it may have."""

    template: Treatment
    kinds: Mapping[str, tuple[TreatmentFacts, Mapping[str, Setting]]]
    """By name, the facts and every setting: values, and `$name` for a parameter's. The name of none is left out."""
    when: tuple[Condition, ...]
    unless: tuple[Condition, ...]


@dataclass(frozen=True)
class Unit:
    """One parameter of the file, or the knob of a method, as what a sampler proposes for it."""

    name: str
    when: tuple[Condition, ...]
    parameters: tuple[Parameter, ...]
    otherwise: Setting | None = None
    layers: LayerChoice | None = None


@dataclass(frozen=True)
class BoundSpace:
    """Implements `autopeft.domain.space.Space`; made by `bind`."""

    file: SearchSpaceFile
    units: tuple[Unit, ...]
    """Parents before children."""
    insertions: tuple[BoundInsertion, ...]
    notices: tuple[str, ...]
    """What a person should know of the binding: module sets and methods that the model cannot have."""
    depth: int
    """Layers of the model."""
    at_least: int
    """Fewest insertions of a candidate."""
    module_sets: Mapping[str, Mapping[str, Roles]] = field(repr=False)
    """Per `modules` parameter, the roles of each set that the model has."""
    pruning: BoundTreatment | None = None
    policy: BoundTreatment | None = None

    @property
    def name(self) -> str:
        """What the file calls it."""
        return self.file.name

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parents before children."""
        return tuple(parameter for unit in self.units for parameter in unit.parameters)

    @cached_property
    def _units(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.units}

    def size(self) -> int | None:
        """How many settings of the parameters stand for a candidate, None where one is continuous.

        Candidates may be fewer: a range beyond the last layer and one up to it are the same.
        """
        return counting.size(self.units, self.insertions, self.at_least)

    def resolve(self, values: Mapping[str, Setting]) -> Candidate | None:
        """The candidate that these values of the active parameters stand for; None where they put in too little.

        Raises:
            UserError: where a value is missing, outside its domain, or of a parameter that is not active.
        """
        active = checked.check(self.parameters, values, self.name)
        found = [insertion for one in self.insertions if (insertion := self._insertion(one, active)) is not None]
        if len(found) < self.at_least:
            return None
        pruning, policy = self._treatment(self.pruning, active), self._treatment(self.policy, active)
        return Candidate(
            insertions=self._joined(found),
            learning_rate=self._learning_rate(active),
            pruning=Pruning(criterion=pruning[0], settings=pruning[1]) if pruning else None,
            # The head alone has no layers to choose among, so that every policy trains the same.
            policy=Policy(name=policy[0], settings=policy[1]) if policy and found else None,
        )

    def _treatment(
        self, one: BoundTreatment | None, active: Mapping[str, Setting]
    ) -> tuple[str, dict[str, Setting]] | None:
        if one is None or not self._present(one, active):
            return None
        name = str(self._value(one.template.chosen, active))
        if name == one.template.off:
            return None
        facts, settings = one.kinds[name]
        return name, {
            key: checked.canonical(self._value(value, active), facts.settings[key])
            for key, value in sorted(settings.items())
        }

    def _insertion(self, one: BoundInsertion, active: Mapping[str, Setting]) -> Insertion | None:
        if not self._present(one, active):
            return None
        template = one.template
        method = one.methods[str(self._value(template.method, active))]
        layers = self._layers(template, active) if method.facts.takes_layers else tuple(range(self.depth))
        layers = tuple(index for index in layers if index in one.part)
        if not layers:
            return None  # nothing to train here, whatever the settings say
        modules = method.modules
        if modules is None:
            modules = self._modules(template, active)
        settings = {
            name: checked.canonical(self._value(value, active), method.facts.settings[name])
            for name, value in sorted(method.settings.items())
        }
        return Insertion(method=method.facts.name, layers=layers, modules=modules, settings=settings)

    def _present(self, one: BoundInsertion | BoundTreatment, active: Mapping[str, Setting]) -> bool:
        if not all(when.parameter in active and active[when.parameter] in when.values for when in one.when):
            return False
        for unless in one.unless:
            unit = self._units.get(unless.parameter)
            if active.get(unless.parameter, unit.otherwise if unit else None) in unless.values:
                return False
        return True

    def _joined(self, insertions: list[Insertion]) -> tuple[Insertion, ...]:
        """Insertions into parts of the depth that turned out alike are one, so that equal models have one digest."""
        found: list[Insertion] = []
        parted = {one.template.method for one in self.insertions if one.template.part is not None}
        for insertion in insertions:
            for index, earlier in enumerate(found):
                alike = insertion.model_copy(update={"layers": earlier.layers}) == earlier
                if alike and insertion.method in parted and not set(insertion.layers) & set(earlier.layers):
                    layers = tuple(sorted((*earlier.layers, *insertion.layers)))
                    found[index] = earlier.model_copy(update={"layers": layers})
                    break
            else:
                found.append(insertion)
        return tuple(found)

    def _value(self, value: Setting, active: Mapping[str, Setting]) -> Setting:
        name = reference(value)
        if name is None:
            return value
        if name in active:
            return active[name]
        otherwise = self._units[name].otherwise
        assert otherwise is not None  # refused when the file was read
        return otherwise

    def _layers(self, template: InsertionTemplate, active: Mapping[str, Setting]) -> tuple[int, ...]:
        name = reference(template.layers)
        if name is not None:
            choice = self._units[name].layers
            assert choice is not None
            return choice.layers(active) or ()
        if isinstance(template.layers, tuple):
            return tuple(sorted(set(template.layers)))
        return tuple(range(self.depth))

    def _modules(self, template: InsertionTemplate, active: Mapping[str, Setting]) -> Roles:
        name = reference(template.modules)
        assert name is not None
        return self.module_sets[name][str(self._value(f"${name}", active))]

    def _learning_rate(self, active: Mapping[str, Setting]) -> float:
        rate = self.file.candidate.learning_rate
        parameter = self.file.parameters.get(reference(rate) or "")
        if not isinstance(parameter, LearningRateParameter):
            return float(self._value(rate, active))
        chosen = str(self._value(f"${parameter.of}", active))
        low, high = next(one.methods[chosen] for one in self.insertions if chosen in one.methods).facts.learning_rates
        position = float(active[f"{reference(rate)}.position"])
        # Three digits: what a person reads is what is trained.
        return float(f"{low * (high / low) ** position:.3g}")
