"""Recorded trainings: configurations of a space trained at every rung with several seeds, to replay searches on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from autopeft.domain.candidate import Candidate, Setting
from autopeft.domain.space import Parameter
from autopeft.domain.trial import FailureReason, TrialStatus

FORMAT = 1
"""Of the table; a reader refuses a later one."""


class RecordedRung(BaseModel):
    """What one training was like after some of its steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    quality: dict[str, float]
    """Validation metrics by name."""
    train_loss: float
    """Mean training loss since the last rung."""
    train_s: float
    """Training seconds so far, evaluation excluded."""
    evaluate_s: float
    """Seconds of the validation passes so far, this one included."""
    wall_s: float
    """Seconds since the training was begun: set-up, steps and validation passes."""
    cpu_s: float
    """The same in processor time of the process, which other work on the machine does not lengthen."""


class RecordedTraining(BaseModel):
    """One configuration trained with one seed; numbers that were not measured are None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: int
    """Number of the configuration, from 0 in the order of drawing."""
    seed: int
    parameters: dict[str, Setting]
    """As a sampler would have proposed them."""
    candidate: Candidate
    status: TrialStatus
    reason: FailureReason | None = None
    """Why it did not complete."""
    rungs: tuple[RecordedRung, ...]
    """Those that were reached."""
    planned_steps: int | None = None
    wall_s: float
    """From the begin to the end, saving the adapter and taking the modules out included."""
    cpu_s: float
    train_tokens: int | None = None
    train_peak_bytes: int | None = None
    train_mean_bytes: int | None = None
    estimation_peak_bytes: int | None = None
    infer_peak_bytes: int | None = None
    adapter_bytes: int | None = None
    trainable_parameters: int | None = None
    head_parameters: int | None = None
    total_parameters: int | None = None
    kept_parameters: int | None = None
    latency_s: float | None = None


class RecordingFacts(BaseModel):
    """What the trainings of one table have in common; holds no text of a data set and no path of a machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    space: dict[str, Any]
    """The space's file as values."""
    space_digest: str
    parameters: tuple[Parameter, ...]
    """Of the space, bound to the model."""
    model: str
    model_fingerprint: str
    data: str
    data_fingerprint: str
    rows: dict[str, int]
    """Rows per split."""
    majority_share: float | None
    """What guessing reaches."""
    metric: str
    """The headline metric."""
    higher_is_better: bool
    """Of the headline metric."""
    recipe: dict[str, Any]
    """How every configuration was trained: the spec's `training` and what of its `data` is no name."""
    rungs: tuple[float, ...]
    """Shares of the planned steps."""
    seed: int
    """Of the draws of configurations and of samples of the data."""
    seeds: int
    """Trainings of each configuration."""
    batch_rows: int
    """Training rows per optimiser step."""
    device: str
    clock: str
    """`cpu` where seconds are best read as `cpu_s`, on a machine that does other work too; else `wall`."""
    versions: dict[str, str]
    machine: str
    command: str
    """Makes the table anew."""

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change while a table grows."""
        return self.model_dump(mode="json", exclude={"versions", "machine", "command"})


@dataclass(frozen=True)
class RecordedTable:
    """Whole configurations: each has a training for every seed."""

    facts: RecordingFacts
    trainings: Mapping[int, tuple[RecordedTraining, ...]]
    """By configuration, in order of seed."""

    @classmethod
    def of(cls, facts: RecordingFacts, trainings: Sequence[RecordedTraining]) -> RecordedTable:
        """The configurations of which all seeds are there."""
        by_config: dict[int, dict[int, RecordedTraining]] = {}
        for one in trainings:
            by_config.setdefault(one.config, {})[one.seed] = one
        return cls(
            facts,
            {
                config: tuple(seeds[seed] for seed in sorted(seeds))
                for config, seeds in sorted(by_config.items())
                if len(seeds) == facts.seeds
            },
        )
