"""The YAML format of a search space: what a person writes, checked before any model is known."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


FileParameter = Annotated[
    IntParameter | FloatParameter | ChoiceParameter | LayersParameter | ModulesParameter, Field(discriminator="kind")
]
KINDS: dict[str, type[_Conditional]] = {
    "int": IntParameter,
    "float": FloatParameter,
    "choice": ChoiceParameter,
    "layers": LayersParameter,
    "modules": ModulesParameter,
}


class InsertionTemplate(_Part):
    """One PEFT method; `$name` stands for a parameter's value."""

    method: str
    layers: str | tuple[int, ...] = "all"
    """`$name`, `all`, or a list of indices (0 is nearest to the input)."""
    modules: str | tuple[str, ...] = "all"
    """`$name`, `all`, or a list of roles."""
    settings: dict[str, Setting] = {}
    when: When = {}
    """Where the insertion exists; always by default."""


class CandidateTemplate(_Part):
    """What one choice of the parameters stands for."""

    insertions: tuple[InsertionTemplate, ...] = Field(min_length=1)
    learning_rate: Setting
    """A number or `$name`."""


class SearchSpaceFile(_Part):
    """A search space as written, bound to no model yet."""

    name: str = Field(min_length=1)
    summary: str = Field(min_length=1)
    papers: tuple[str, ...] = ()
    notes: str = ""
    parameters: dict[str, FileParameter] = Field(min_length=1)
    candidate: CandidateTemplate

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
        case ("parameters", _):
            model = KINDS.get(kind or "")
    return tuple(model.model_fields) if model else ()
