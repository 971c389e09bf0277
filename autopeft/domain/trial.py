"""A candidate on its way through a search, and how it ended."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from autopeft.domain.candidate import Candidate, Setting
from autopeft.domain.measurements import Measurements
from autopeft.domain.start import ORIGIN, SAMPLER

CHECKPOINT = "checkpoint.safetensors"
"""Name of the file, in a trial's artefact folder, from which its training can be gone on with."""
UNFINISHED = ".checkpoint-"
"""How the names of folders begin, in that folder, in which a file is made that will take its place."""


class TrialStatus(StrEnum):
    """Where a trial stands. Only `complete` trials with finite values reach a front."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETE = "complete"
    INFEASIBLE = "infeasible"
    """Out of memory or over the user's limit: a result, and the sampler learns from it."""
    INVALID = "invalid"
    """A NaN, infinite or missing objective."""
    CRASHED = "crashed"
    """The evaluation raised."""
    STOPPED_EARLY = "stopped_early"
    LOST = "lost"
    """Its worker or its driver died; retried until the retries are used up."""
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the trial."""
        return self not in (TrialStatus.PENDING, TrialStatus.RUNNING)


class FailureReason(StrEnum):
    """Why a trial did not complete, in a word that a table can hold."""

    OUT_OF_MEMORY = "out_of_memory"
    OVER_LIMIT = "over_limit"
    PREDICTED_OVER_LIMIT = "predicted_over_limit"
    """It was refused before it trained."""
    NOT_PREDICTED = "not_predicted"
    """The prediction that was asked for cannot be made, so it was refused before it trained."""
    NOT_FINITE = "not_finite"
    MISSING_METRIC = "missing_metric"
    EXCEPTION = "exception"
    WORKER_DIED = "worker_died"
    DRIVER_DIED = "driver_died"


class Failure(BaseModel):
    """Why a trial did not complete, with what a person needs to act on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: FailureReason
    text: str
    """One sentence."""
    detail: str = ""
    """Last lines of the traceback, where there is one."""
    violation: float | None = None
    """For infeasible trials: how far above the limit, as a share of it (0.5 is 50 % above); None if unknown."""


class Outcome(BaseModel):
    """What an evaluator hands back for one task; it never raises across processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: TrialStatus
    measurements: Measurements | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    """Wall seconds from taking the task to handing it back."""
    recycle_worker: bool = False
    """Whether the process that ran it should be replaced before the next task."""


class Trial(BaseModel):
    """One row of the trial table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Counts from 0 in the order of proposal, per run."""
    candidate: Candidate
    parameters: dict[str, Setting]
    """What the sampler proposed; only the parameters that were active."""
    seed: int
    status: TrialStatus
    attempt: int = 0
    """How often it was started; results of an earlier attempt are refused. 0 where it was refused before it trained."""
    driver_deaths: int = 0
    """How often the search was killed, or was brought down by it, while it ran."""
    measurements: Measurements | None = None
    failure: Failure | None = None
    test_quality: dict[str, float] | None = None
    """Test metrics; only points of the front are ever scored."""
    sampler_state: dict[str, Any] = {}
    """What the sampler must see again at a replay (JSON)."""
    worker: str = ""
    created_at: float = 0.0
    """Unix seconds, as the two below."""
    started_at: float | None = None
    finished_at: float | None = None
    seconds: float = 0.0
    """Wall seconds charged over all attempts."""
    gpu_seconds: float = 0.0

    @property
    def digest(self) -> str:
        """The candidate's identity."""
        return self.candidate.digest

    @property
    def origin(self) -> str:
        """Where its proposal came from: `sampler`, `start-with`, `first guess` or `warm start of RUN`."""
        return str(self.sampler_state.get(ORIGIN, SAMPLER))

    @property
    def refused(self) -> bool:
        """Whether it ended without ever being started, for what was predicted of it; no budget is charged."""
        return self.status.ended and self.attempt == 0

    @property
    def artefact_name(self) -> str:
        """Name of the folder that holds its adapter: `0007-0123456789abcdef`."""
        return f"{self.number:04d}-{self.digest}"
