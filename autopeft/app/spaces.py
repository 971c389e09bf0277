"""Search spaces for a person: the list, and one of them in detail."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from autopeft.domain.layout import TaskName
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.inspection import inspect_model
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.spaces import ParameterRow, SpaceSummary, available, bind, load_space
from autopeft.spaces import describe as rows_of
from autopeft.spaces.guesses import guesses


@dataclass(frozen=True)
class SpaceCard:
    """What there is to say about one space."""

    name: str
    summary: str
    papers: tuple[str, ...]
    notes: str
    parameters: tuple[ParameterRow, ...]
    bound_to: str | None
    """The model it was bound to, None where it was not."""
    size: int | None
    """How many configurations, None where a parameter is continuous or the space is not bound."""
    notices: tuple[str, ...]
    first: tuple[str, ...] = ()
    """First guesses: what each is, and where it comes from."""

    def as_dict(self) -> dict[str, Any]:
        """The card as JSON values."""
        return asdict(self)


def listed() -> list[SpaceSummary]:
    """Every space that is installed."""
    return available()


def describe(name: str, model: str | None, task: TaskName = TaskName.SEQUENCE_CLASSIFICATION) -> SpaceCard:
    """One space as written, or bound to a model (a folder with a `config.json` is enough) and a task.

    Raises:
        UserError: where the space or the model cannot be had, or they do not fit.
    """
    file = load_space(name)
    first = tuple(f"{one.name} ({one.source})" if one.source else one.name for one in file.first)
    if model is None:
        return SpaceCard(file.name, file.summary, file.papers, file.notes, tuple(rows_of(file)), None, None, (), first)
    layout = inspect_model(SearchSpec.model_validate({"model": model}).model, task)
    bound = bind(file, layout, METHODS, POLICIES, CRITERIA)
    notices = (*bound.notices, *guesses(bound, layout.hidden_size)[1])
    return SpaceCard(
        file.name, file.summary, file.papers, file.notes, tuple(rows_of(bound)), model, bound.size(), notices, first
    )
