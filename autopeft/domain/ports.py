"""The interfaces between rooms. Implementations are built in `autopeft.app` and nowhere else."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from autopeft.domain.budget import Budget, Spent
from autopeft.domain.candidate import Candidate, Insertion, Setting
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.measurements import Report
from autopeft.domain.memory import Prediction
from autopeft.domain.method import MethodFacts, TreatmentFacts
from autopeft.domain.results import RunRecord, ScoredTrial
from autopeft.domain.trial import Outcome, Trial, TrialStatus


class MethodRules(Protocol):
    """What binding a space must know of a PEFT method, without importing torch."""

    @property
    def facts(self) -> MethodFacts: ...

    def default_modules(self, layout: ModelLayout) -> tuple[str, ...]:
        """The roles that the method's paper or library puts it into, sorted, of those that the model has.

        Empty where it takes no modules.
        """
        ...

    def problems(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]:
        """What is wrong with putting this insertion into this model; empty where it fits."""
        ...

    def trainable(self, insertion: Insertion, layout: ModelLayout) -> int:
        """How many parameters it trains, the head excluded: the closed form, from the layout alone."""
        ...

    def occupied(self, insertion: Insertion, layout: ModelLayout) -> frozenset[str]:
        """What it claims: two insertions of one candidate that claim the same cannot both be trained.

        A method that wraps a linear module claims its path; one that trains a parameter in place, the parameter's.
        """
        ...


class TreatmentRules(Protocol):
    """What binding a space must know of a pruning criterion or a training policy, without importing torch."""

    @property
    def facts(self) -> TreatmentFacts: ...

    def problems(self, candidate: Candidate, layout: ModelLayout) -> list[Problem]:
        """What is wrong with this treatment in this candidate on this model; empty where it fits.

        `Problem.where` is a setting's name, or `policy` or `pruning`. The candidate's insertions fit the model.
        """
        ...


class EvaluationTask(BaseModel):
    """What a worker is asked to train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    attempt: int
    seed: int
    candidate: Candidate
    artefact_dir: str
    """Absolute path of the folder for the trained adapter, which a trial that completes puts in the place of whatever
    lies there. Until then it may hold the trial's checkpoint, from which another attempt at the same task goes on."""


Evaluation = Generator[Mapping[int, Report], frozenset[int], dict[int, Outcome]]
"""A running evaluation of some tasks: yields a report per task by number (rungs as they are reached; before them, of a
task that is gone on with, where it was taken up), is sent the numbers to stop at a rung, and returns an outcome per
number. An empty mapping is no report: there it may be left after `Evaluator.pause`. Closing it (`GeneratorExit`) or any
exception raised inside takes the PEFT modules out again."""


class Evaluator(Protocol):
    """Trains and measures candidates; keeps model and data loaded between tasks."""

    def evaluate(self, tasks: Sequence[EvaluationTask]) -> Evaluation:
        """Train these tasks (today: one). Failures are outcomes, never exceptions.

        A trial that is stopped early keeps its checkpoint; one that ends in another way has none.
        """
        ...

    def pause(self) -> bool:
        """Ask the running evaluation to save a checkpoint after the optimiser step that it is in, and yield nothing.

        May be called from a signal handler or another thread. Returns whether that will happen; False where no step is
        under way, or saving would take much longer than one: then it may be broken off as it is.
        """
        ...

    def score_test(self, artefact_dir: Path) -> dict[str, float]:
        """Test metrics of a saved adapter, loaded onto the untouched base model.

        Writes `test_predictions.json` beside the adapter.

        Raises:
            UserError: where the data has no test split.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class EvaluatorRef(BaseModel):
    """How to build an evaluator in another process: an importable callable and JSON arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    """`package.module:callable`."""
    arguments: dict[str, Any] = {}


class Resources(BaseModel):
    """What the workers of a search get, all decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    ray_address: str | None = None

    @property
    def threads(self) -> int:
        """Computing threads per worker."""
        return max(1, int(self.cpus_per_worker))


@dataclass(frozen=True)
class Proposal:
    """A candidate that a sampler wants trained, with the parameters that stand for it."""

    parameters: dict[str, Setting]
    candidate: Candidate
    sampler_state: dict[str, Any]
    """JSON to store with the trial and show the sampler again at a replay."""
    seed: int | None = None
    """Of its training; None is the search's own. Another one makes it a repetition of a candidate."""


@dataclass(frozen=True)
class Known:
    """What is known of a candidate before it is trained."""

    values: Mapping[str, float] = field(default_factory=dict)
    """Exact objectives by name."""
    feasible: bool = True
    """False where it is known not to fit into the memory limit."""
    seconds: float | None = None
    """Predicted seconds of its training, up to a factor that all candidates have."""


class KnownObjectives(Protocol):
    """Tells what need not be learned by training: closed forms and predictions from the layout."""

    def __call__(self, candidate: Candidate) -> Known | None:
        """What is known of the candidate; the same at every call. None where nothing is."""
        ...


class Sampler(Protocol):
    """Proposes candidates and learns from trials. A pure function of seed, history and number.

    After `replay` of a history, `ask` proposes exactly what it would have proposed had the same trials been asked and
    told one after another.
    """

    def ask(self, number: int) -> Proposal | None:
        """A candidate that was never proposed or replayed with this seed; None where the space has no more."""
        ...

    def tell(self, scored: ScoredTrial) -> None:
        """Learn how a proposed trial ended. A trial back in `pending` stays a running one to the sampler."""
        ...

    def replay(self, history: Sequence[ScoredTrial]) -> None:
        """Learn a stored history, in order of number, running and pending trials included."""
        ...


class MemoryForecast(Protocol):
    """Foretells the training memory of candidates, without weights and without training."""

    def predict(self, candidate: Candidate) -> Prediction | None:
        """The peak that the trial will measure; None where it cannot be told. Quick for candidates of known kinds."""
        ...

    def why_not(self, candidate: Candidate) -> str:
        """Why there is no prediction; empty where there is one."""
        ...

    def estimation(self, candidate: Candidate) -> Prediction | None:
        """The peak of the estimation phase; None for a candidate that prunes nothing, or where it cannot be told."""
        ...


class RunStore(Protocol):
    """The trial table of one run, opened by one session at a time for writing."""

    @property
    def record(self) -> RunRecord: ...

    def budget(self) -> Budget: ...

    def set_budget(self, budget: Budget) -> None: ...

    def spent(self) -> Spent:
        """Ended trials, refused ones left out; wall seconds of all sessions (the open one up to now); GPU seconds."""
        ...

    def trials(self) -> list[Trial]:
        """Every trial in order of number."""
        ...

    def open_session(self) -> list[Trial]:
        """Take the run for this process.

        Trials that a dead session left running are returned: back in `pending`, charged up to the session's last
        heartbeat and with one more of `driver_deaths`, or `lost` where those reached their limit. They cost no retry:
        those are for dead workers.

        Raises:
            RunBusyError: where another live process has the run.
        """
        ...

    def heartbeat(self) -> None:
        """Keep the session's lease and its clock; cheap, called every second or so."""
        ...

    def close_session(self) -> None: ...

    def add(self, proposal: Proposal, seed: int) -> Trial:
        """A new pending trial with the next number.

        Raises:
            TakenTrialError: where the run has a trial of this candidate and seed.
        """
        ...

    def refuse(self, proposal: Proposal, seed: int, outcome: Outcome) -> Trial:
        """A new trial with the next number that ended before it was started, with no attempt and nothing charged.

        Raises:
            TakenTrialError: as `add`.
        """
        ...

    def reopen(self, number: int) -> Trial:
        """Put a trial that was stopped early back to `pending`, with what it measured, to train on.

        Raises:
            ValueError: where it was not stopped early.
        """
        ...

    def start(self, number: int, worker: str, *, gpus: float = 0.0) -> Trial:
        """Mark a pending trial running, one attempt further, on so many GPUs (charged if this process is killed)."""
        ...

    def finish(self, number: int, attempt: int, outcome: Outcome, gpus: float) -> Trial | None:
        """Record how an attempt ended and charge it; None where the attempt is not the current one (a late result)."""
        ...

    def release(self, number: int, attempt: int, status: TrialStatus, seconds: float, gpus: float) -> Trial | None:
        """Put an interrupted (`pending`) or lost (`lost`) attempt back; a lost one is pending while retries last."""
        ...

    def record_test(self, number: int, quality: Mapping[str, float]) -> Trial: ...


class Store(Protocol):
    """A database with any number of runs."""

    def create(self, record: RunRecord) -> RunStore:
        """Add a run.

        Raises:
            UserError: where the name is taken.
        """
        ...

    def open(self, name: str) -> RunStore | None: ...

    def names(self) -> list[str]:
        """Names of all runs, oldest first."""
        ...

    def close(self) -> None: ...
