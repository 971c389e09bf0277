"""Every number that a trial produced, in base units: bytes, seconds, fractions."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class MemorySource(StrEnum):
    """How a number of bytes was obtained."""

    CUDA_ALLOCATOR = "cuda_allocator"
    TRACKED = "tracked"
    PREDICTED = "predicted"


class PeakMemory(BaseModel):
    """Largest number of bytes live at once in one phase, base model included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    live_bytes: int
    source: MemorySource
    reserved_bytes: int | None = None
    """What the caching allocator held from the device; CUDA only."""


class Rung(BaseModel):
    """What a trial reported part-way: validation scores after some of its steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimiser steps done."""
    planned_steps: int
    quality: dict[str, float]
    """Validation metrics by name, for example `accuracy`, as fractions."""
    train_loss: float
    """Mean training loss since the last rung."""
    train_s: float
    """Training seconds so far, evaluation excluded."""
    evaluate_s: float = 0.0
    """Seconds of this validation pass."""
    train_peak: PeakMemory | None = None
    """As `Measurements.train_peak`, so far; None while a pruning is being estimated."""

    @property
    def fidelity(self) -> float:
        """Share of the planned optimiser steps that is done, from 0 to 1."""
        return self.step / self.planned_steps


class TakenUp(BaseModel):
    """What a trial reports first that an earlier attempt had begun."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimiser steps done before, after which it goes on; 0 where it starts anew."""
    planned_steps: int
    problem: str = ""
    """Why it starts anew, or why a checkpoint could not be used; empty where it goes on."""


Report = Rung | TakenUp
"""What a trial says while it runs."""


class Measurements(BaseModel):
    """The numbers of one trial; measured once, scored any number of times.

    Fields are `None` where the trial ended before they were measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quality: dict[str, float] = {}
    """Validation metrics at the end of training, as fractions (correlations from -1 to 1).

    Those of the last rung; of the saved adapter where that is another model (PiSSA on half-precision weights).
    """
    rungs: tuple[Rung, ...] = ()
    steps: int = 0
    planned_steps: int = 0
    first_losses: tuple[float, ...] = ()
    """Training loss of the first steps, at most 20, to compare runs with."""
    train_s: float | None = None
    train_tokens: int | None = None
    """Tokens trained on, padding excluded."""
    evaluate_s: float | None = None
    """Seconds of the final validation pass."""
    latency_s: float | None = None
    """Median seconds per validation batch divided by its rows."""
    setup_s: float | None = None
    """Seconds to insert the PEFT modules and take them out again."""
    trainable_parameters: int | None = None
    """As found in the live model: PEFT weights and head."""
    head_parameters: int | None = None
    """The head's share of `trainable_parameters`."""
    total_parameters: int | None = None
    inserted_modules: tuple[str, ...] = ()
    """Names of the modules that the method replaced, as found in the live model."""
    adapter_bytes: int | None = None
    """Size of the saved adapter file, head included."""
    train_peak: PeakMemory | None = None
    infer_peak: PeakMemory | None = None
    train_mean_bytes: int | None = None
    """Mean over the watched optimiser steps of the step's own peak; below `train_peak` where a policy trains less."""
    estimation_peak: PeakMemory | None = None
    """Of the estimation phase of a pruning, masks included; `train_peak` is then of the training after it."""
    estimation_s: float | None = None
    pruning_s: float | None = None
    """Seconds of the one pruning step, the copy of what it prunes included."""
    copied_bytes: int | None = None
    """What had to be copied so that pruning leaves the shared base model as it was."""
    kept_parameters: int | None = None
    """Parameters of the pruned model in all."""
    layer_scores: tuple[tuple[int, tuple[float, ...]], ...] = ()
    """Importance of layers over time: optimiser steps done, and a score for each of `scored_layers`, higher is more
    important."""
    scored_layers: tuple[int, ...] = ()
    """The layers that held something trainable, ascending, where a policy scored them."""
    load_peak: PeakMemory | None = None
    """While the base model was loaded, once for all trials of the worker; CUDA only."""
    device_taken_bytes: int | None = None
    """What of the device was taken when the worker began, by other processes and by its own context; CUDA only. The
    allocator's peaks are of this process alone and do not hold it."""
    foretold_peak: PeakMemory | None = None
    """`train_peak` as it was predicted before the trial, uncorrected."""
    foretold_estimation_peak: PeakMemory | None = None
    """The same of `estimation_peak`."""
    calibrated_peak_bytes: int | None = None
    """`foretold_peak` as corrected, before the trial, by what earlier trials had measured."""
    elsewhere_peak: PeakMemory | None = None
    """`train_peak` of the same candidate on the model and at the size that `predict_for` of the spec names: predicted,
    never measured."""
    resumed_at: tuple[int, ...] = ()
    """Optimiser steps after which it was gone on with from a checkpoint, ascending. Seconds are then those of all
    attempts together, without the steps that had to be done again."""
    checkpoint_problem: str = ""
    """Why a checkpoint that was there was not used, or why none could be written; empty mostly."""
    device: str = ""
    dtype: str = ""
