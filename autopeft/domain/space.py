"""Parameters of a search space: their domains and the conditions under which they exist."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from autopeft.domain.candidate import Candidate, Setting


class IntDomain(BaseModel):
    """Whole numbers from `low` to `high`, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntDomain:
        if self.low > self.high or (self.log and self.low < 1):
            raise ValueError("needs low <= high, and low >= 1 on a log scale")
        return self

    def size(self) -> int | None:
        return self.high - self.low + 1


class FloatDomain(BaseModel):
    """Real numbers from `low` to `high`, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatDomain:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise ValueError("needs finite low <= high")
        if self.log and self.low <= 0:
            raise ValueError("needs low > 0 on a log scale")
        return self

    def size(self) -> int | None:
        return 1 if self.low == self.high else None


class ChoiceDomain(BaseModel):
    """One of some values; `ordered` says that neighbours are alike (a ladder of ranks)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["choice"] = "choice"
    values: tuple[Setting, ...] = Field(min_length=1)
    ordered: bool = False

    @model_validator(mode="after")
    def _distinct(self) -> ChoiceDomain:
        if len({(type(value), value) for value in self.values}) < len(self.values):
            raise ValueError("names a value twice")
        return self

    def size(self) -> int | None:
        return len(self.values)


Domain = Annotated[IntDomain | FloatDomain | ChoiceDomain, Field(discriminator="kind")]


class Condition(BaseModel):
    """Holds where another parameter is active and has one of these values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameter: str
    values: tuple[Setting, ...]


class Parameter(BaseModel):
    """One number or choice that a sampler proposes; exists only where every condition holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    domain: Domain
    when: tuple[Condition, ...] = ()
    summary: str = ""

    def active(self, values: Mapping[str, Setting]) -> bool:
        """Whether it exists, given the values of the parameters before it."""
        return all(
            condition.parameter in values and values[condition.parameter] in condition.values for condition in self.when
        )


class Space(Protocol):
    """A search space bound to one model's layout: what samplers and the search loop see of it."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Parents before children, so that one pass decides what is active."""
        ...

    def resolve(self, values: Mapping[str, Setting]) -> Candidate | None:
        """The candidate that these values of the active parameters stand for; None where they stand for none.

        Raises:
            UserError: where a value is missing or outside its domain.
        """
        ...

    def size(self) -> int | None:
        """How many settings of the parameters stand for a candidate, None where one is continuous.

        Candidates may be fewer, where several settings stand for one.
        """
        ...
