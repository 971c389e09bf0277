"""The YAML format of a search space: what a person writes, checked before any model is known."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from autopeft.domain.candidate import Setting
from autopeft.domain.layout import Role
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.spaces.source import Place, Source

LayerMode = Literal["top-k", "range", "bits"]
FAMILIES = ("attention.*", "ffn.*")
"""Entries of a module set that stand for every role of the family that the model has."""
ROLE_NAMES = (*(role.value for role in Role), *FAMILIES)


def _one_as_tuple(value: Any) -> Any:
    return [value] if isinstance(value, bool | int | float | str) else value


Values = Annotated[tuple[Setting, ...], BeforeValidator(_one_as_tuple), Field(min_length=1)]
When = dict[str, Values]
"""Conditions: parameter -> values, all of which must hold (`when: {variant: [lora, rslora]}`)."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Conditional(_Part):
    summary: str = ""
    """One line for a person who reads a table."""
    when: When = {}
    """Where the parameter exists; always by default."""


class IntParameter(_Conditional):
    """A whole number."""

    kind: Literal["int"]
    low: int
    high: int
    log: bool = False
    otherwise: int | None = None
    """Stands for the parameter where `when` does not hold."""

    def domain(self) -> IntDomain:
        """Raises ValueError where the bounds make no sense."""
        return IntDomain(low=self.low, high=self.high, log=self.log)


class FloatParameter(_Conditional):
    """A real number."""

    kind: Literal["float"]
    low: float
    high: float
    log: bool = False
    otherwise: float | None = None

    def domain(self) -> FloatDomain:
        """Raises ValueError where the bounds make no sense."""
        return FloatDomain(low=self.low, high=self.high, log=self.log)


class ChoiceParameter(_Conditional):
    """One of some values; `ordered` where neighbours are alike."""

    kind: Literal["choice"]
    values: tuple[Setting, ...] = Field(min_length=1)
    ordered: bool = False
    otherwise: Setting | None = None

    def domain(self) -> ChoiceDomain:
        """Raises ValueError where a value comes twice."""
        return ChoiceDomain(values=self.values, ordered=self.ordered)


class LayersParameter(_Conditional):
    """Which layers are trained; becomes several parameters once the model's depth is known.

    `top-k`: the last k. `range`: `count` from `first` on, as far as there are layers. `bits`: one switch per layer.
    """

    kind: Literal["layers"]
    modes: Annotated[tuple[LayerMode, ...], BeforeValidator(_one_as_tuple), Field(min_length=1)]
    """One way of choosing, or several: then the search chooses among them too."""
    at_least: int = Field(default=1, ge=1)
    """Fewest layers of `top-k` and `range`."""
    at_most: int | None = Field(default=None, ge=1)
    """Most layers of `top-k` and `range`; all by default."""
    otherwise: Literal["all", "none"] | None = None


class ModulesParameter(_Conditional):
    """Which linear modules of a layer are trained: one of some named sets of roles."""

    kind: Literal["modules"]
    sets: dict[str, Literal["all"] | tuple[str, ...]] = Field(min_length=1)
    otherwise: str | None = None


class SizesParameter(_Conditional):
    """A size from a ladder of halves of the model's width (AutoPEFT, Zhou et al., TACL 2024, section 3)."""

    kind: Literal["sizes"]
    of: Literal["hidden_size"] = "hidden_size"
    """The width that is halved."""
    halvings: int = Field(default=8, ge=0, le=62)
    """How often; what comes out is rounded down."""
    one: bool = False
    """Whether 1 is a step of the ladder, however wide the model is."""
    absent: bool = False
    """Whether 0 is one, for `unless: {NAME: 0}`: the insertion is left out."""
    otherwise: int | None = None

    def domain(self, width: int) -> ChoiceDomain:
        """The ladder on a model of this width, ascending."""
        steps = {width >> halved for halved in range(self.halvings + 1)} - {0}
        steps |= {1} if self.one else set()
        return ChoiceDomain(values=(*((0,) if self.absent else ()), *sorted(steps)), ordered=True)


class MethodsParameter(_Conditional):
    """Which PEFT method is used: one of those that model and task can take, each with its own knob.

    Becomes a choice of names and one ordered choice `NAME.METHOD.KNOB` per method that has a knob.
    """

    kind: Literal["methods"]
    among: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
    at_most: int | None = Field(default=None, ge=1)
    """Most steps of a method's knob, spread over its ladder; all by default."""
    otherwise: ClassVar[None] = None


class LearningRateParameter(_Conditional):
    """A place in the range of learning rates that is usual for the chosen method, on a log scale.

    Becomes a number `NAME.position` from 0 (the lowest) to 1 (the highest): what is learned of one method's learning
    rate helps the others, though their ranges lie a hundred times apart.
    """

    kind: Literal["learning-rate"]
    of: str
    """The parameter that chooses the method."""
    otherwise: ClassVar[None] = None


FileParameter = Annotated[
    IntParameter
    | FloatParameter
    | ChoiceParameter
    | LayersParameter
    | ModulesParameter
    | SizesParameter
    | MethodsParameter
    | LearningRateParameter,
    Field(discriminator="kind"),
]
KINDS: dict[str, type[_Conditional]] = {
    "int": IntParameter,
    "float": FloatParameter,
    "choice": ChoiceParameter,
    "layers": LayersParameter,
    "modules": ModulesParameter,
    "sizes": SizesParameter,
    "methods": MethodsParameter,
    "learning-rate": LearningRateParameter,
}


class InsertionTemplate(_Part):
    """One PEFT method; `$name` stands for a parameter's value."""

    method: str
    """A name, or `$name` of a choice of names."""
    layers: str | tuple[int, ...] = "all"
    """`$name`, `all`, or a list of indices (0 is nearest to the input)."""
    part: str | None = Field(default=None, pattern=r"^[0-9]+/[0-9]+$")
    """`2/3` keeps the layers of the second of three nearly equal parts of the depth, counted from the input."""
    modules: str | tuple[str, ...] = "default"
    """`$name`, `default` (those of the method's paper), `all`, or a list of roles."""
    settings: dict[str, Setting] = {}
    """What is not named here is at the method's default."""
    when: When = {}
    """Where the insertion exists; always by default."""
    unless: When = {}
    """Where it is left out, though `when` holds."""

    def parts(self) -> tuple[int, int] | None:
        """Number of the part, from 1, and how many there are."""
        if self.part is None:
            return None
        part, _, parts = self.part.partition("/")
        return int(part), int(parts)


class PolicyTemplate(_Part):
    """A training policy; `all` stands for none: every layer trains in every step."""

    off: ClassVar[str] = "all"
    names: ClassVar[str] = "name"
    name: str
    """A name, or `$name` of a choice of names."""
    settings: dict[str, Setting] = {}
    """What is not named here is at the policy's default. Where a parameter chooses among several policies, each takes
    those that it has."""
    when: When = {}
    """Where there is a policy; always by default."""
    unless: When = {}
    """Where there is none, though `when` holds."""

    @property
    def chosen(self) -> str:
        """The name, or `$name`."""
        return self.name


class PruningTemplate(_Part):
    """A pruning criterion; `none` stands for none: the whole backbone is kept."""

    off: ClassVar[str] = "none"
    names: ClassVar[str] = "criterion"
    criterion: str
    """A name, or `$name` of a choice of names."""
    settings: dict[str, Setting] = {}
    """As those of a policy."""
    when: When = {}
    unless: When = {}

    @property
    def chosen(self) -> str:
        """The name, or `$name`."""
        return self.criterion


Treatment = PolicyTemplate | PruningTemplate


class CandidateTemplate(_Part):
    """What one choice of the parameters stands for."""

    insertions: tuple[InsertionTemplate, ...] = Field(min_length=1)
    at_least: int = Field(default=0, ge=0)
    """Fewest insertions: a setting of the parameters that leaves fewer is no candidate. With 0, the head alone is one,
    where the model has a new one."""
    learning_rate: Setting
    """A number or `$name`."""
    pruning: PruningTemplate | None = None
    policy: PolicyTemplate | None = None

    def treatments(self) -> dict[str, Treatment]:
        """Pruning and policy by their keys, where there are any."""
        found: dict[str, Treatment | None] = {"pruning": self.pruning, "policy": self.policy}
        return {key: one for key, one in found.items() if one is not None}


class FirstGuess(_Part):
    """A point that is worth a trial before anything is known of the task."""

    name: str = Field(min_length=1)
    """What it is, for a person who reads a notice."""
    source: str = ""
    """Where it comes from."""
    values: dict[str, Setting]
    """A value for every parameter that exists at the point: one of its values, a name of a set of modules, `all` or
    how many of the top layers, a size as a number or as `hidden_size/8`, the place of a learning rate in its range.
    A method's knob may be given as `METHOD: VALUE` under `knobs`."""
    knobs: dict[str, Setting] = {}
    """By method, where a parameter of kind `methods` chooses it; what is left out is the method's usual value."""


class SearchSpaceFile(_Part):
    """A search space as written, bound to no model yet."""

    name: str = Field(min_length=1)
    summary: str = Field(min_length=1)
    papers: tuple[str, ...] = ()
    notes: str = ""
    parameters: dict[str, FileParameter] = Field(min_length=1)
    candidate: CandidateTemplate
    first: tuple[FirstGuess, ...] = ()
    """Points to try first."""

    _source: Source | None = PrivateAttr(default=None)

    @property
    def origin(self) -> str:
        """The file it was read from, as messages name it."""
        return self._source.origin if self._source else self.name

    def where(self, *place: str | int) -> str:
        """File, line and key of a place in the space, for messages."""
        if self._source is not None:
            return self._source.where(place)
        return ": ".join((self.name, ".".join(str(part) for part in place)))

    def attach(self, source: Source) -> SearchSpaceFile:
        """Remember the lines, for messages."""
        self._source = source
        return self


def names_of_methods(space: SearchSpaceFile) -> set[str]:
    """The parameters that choose the method of an insertion."""
    return {name for one in space.candidate.insertions if (name := reference(one.method)) is not None}


def reference(value: object) -> str | None:
    """The parameter's name where `value` is `$name`, else None."""
    return value[1:] if isinstance(value, str) and value.startswith("$") else None


def allowed_keys(place: Place, kind: str | None) -> tuple[str, ...]:
    """The keys that a mapping at this place of the file may have; `kind` is that of the parameter there."""
    model: type[BaseModel] | None = None
    match place:
        case ():
            model = SearchSpaceFile
        case ("candidate",):
            model = CandidateTemplate
        case ("candidate", "insertions", _):
            model = InsertionTemplate
        case ("candidate", "policy"):
            model = PolicyTemplate
        case ("candidate", "pruning"):
            model = PruningTemplate
        case ("first", _):
            model = FirstGuess
        case ("parameters", _):
            model = KINDS.get(kind or "")
    return tuple(model.model_fields) if model else ()
