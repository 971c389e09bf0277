"""What happens during a search, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autopeft.domain.budget import Budget, Spent
from autopeft.domain.measurements import Rung, TakenUp
from autopeft.domain.results import Front, RunRecord
from autopeft.domain.trial import Trial, TrialStatus


@dataclass(frozen=True)
class RunOpened:
    """A run was made (`done` is 0 and nothing lost) or is gone on with; every number is as stored, after recovery."""

    record: RunRecord
    folder: str
    budget: Budget
    spent: Spent
    resumed: bool
    done: int
    """Trials that were trained and ended."""
    lost: int
    """Trials that ran when an earlier session was killed."""
    workers: int
    counts: Mapping[TrialStatus, int] = field(default_factory=dict)
    """Trials by status; a status that no trial has is left out."""
    front: Front = field(default_factory=lambda: Front((), ()))
    pending: int = 0
    """Trials that earlier sessions left to be done again; they come before new ones."""


@dataclass(frozen=True)
class TrialStarted:
    trial: Trial
    again: bool = False
    """Whether it had been stopped early and trains on: it counts as an ended trial no more."""


@dataclass(frozen=True)
class TrialTakenUp:
    """A trial that an earlier attempt began goes on from its checkpoint, or starts anew and says why."""

    number: int
    taken_up: TakenUp


@dataclass(frozen=True)
class RungReached:
    number: int
    rung: Rung


@dataclass(frozen=True)
class TrialEnded:
    """An attempt ended and is in the store; `trial.status` is `pending` where it will be started again."""

    trial: Trial
    values: tuple[float, ...] | None
    front: Front
    spent: Spent


@dataclass(frozen=True)
class TrialRefused:
    """A candidate was refused for what was predicted of it: a trial that ended before it began."""

    trial: Trial


@dataclass(frozen=True)
class SearchEnded:
    """No more trials will start; `why` is one sentence."""

    why: str
    interrupted: bool


@dataclass(frozen=True)
class Notice:
    """Something a person should read once."""

    text: str


Event = RunOpened | TrialStarted | TrialTakenUp | RungReached | TrialEnded | TrialRefused | SearchEnded | Notice
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that shows nothing."""
