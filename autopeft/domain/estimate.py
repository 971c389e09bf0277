"""What trainings would take, foretold before any is tried: of one configuration, of a space, and in time."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from autopeft.domain.devices import Device
from autopeft.domain.memory import Prediction

Verdict = Literal["fits", "tight", "no"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Training(_Value):
    """What is estimated: the model, and a step of its training as far as memory depends on it."""

    model: str
    task: str
    batch: int
    """Rows of the largest forward pass."""
    seq: int
    """Tokens of its longest row."""
    padded: bool
    dtype: str
    """Of the weights, and after a comma what autocast computes in."""
    load_in: str | None = None
    target: Literal["cuda", "cpu"]
    """What computes: which kernels there are decides what is kept."""
    attention: str
    optimizer: str
    gradient_checkpointing: bool
    held_outputs: bool
    """Whether the loop holds what the model returned until the next step, as plain scripts do."""


class DeviceFit(_Value):
    """One device, and whether the training fits it."""

    device: str
    title: str
    memory_bytes: int
    context_bytes: int
    """Estimate of what driver and libraries take outside the allocator."""
    batch: int | None
    """Rows that are judged; None where not even one fits (`--batch auto`)."""
    train_peak_bytes: int | None
    """Workspaces of this device included."""
    train_peak_reserved_bytes: int | None
    free_bytes: int | None
    """What is left of it; negative where it does not fit."""
    verdict: Verdict
    """`tight`: live bytes fit, and what the allocator would like to hold for them does not; it then gives memory back
    and asks anew, which costs time and may fail."""

    @classmethod
    def of(cls, device: Device, batch: int | None, live: int | None, reserved: int | None) -> DeviceFit:
        """Judge `live` and `reserved` bytes, None where no batch fits."""
        usable = device.usable_bytes
        wanted = live if reserved is None else reserved
        fits = wanted is not None and wanted <= usable
        return cls(
            device=device.name,
            title=device.title,
            memory_bytes=device.memory_bytes,
            context_bytes=device.context_bytes,
            batch=batch,
            train_peak_bytes=live,
            train_peak_reserved_bytes=reserved,
            free_bytes=None if wanted is None else usable - wanted,
            verdict="fits" if fits else "tight" if live is not None and live <= usable else "no",
        )


class Estimate(_Value):
    """The training memory of one configuration, in bytes; the parts sum to `train_peak_bytes`."""

    source: Literal["predicted"] = "predicted"
    configuration: str
    """In one line."""
    training: Training
    train_peak_bytes: int
    """Most bytes live at once: what `torch.cuda.max_memory_allocated` would say, on the CPU what a tracker would."""
    train_peak_reserved_bytes: int | None
    """What torch's caching allocator would hold of a GPU (`max_memory_reserved`); None on the CPU."""
    trainable_parameters: int
    where: str
    """The part of the step in which the peak lies."""
    weights_bytes: int
    peft_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    inputs_bytes: int
    activation_bytes: int
    head_bytes: int
    """Logits and loss."""
    workspace_bytes: int
    """Of cuBLAS, held in the allocator for good."""
    temporary_bytes: int
    layer_activation_bytes: tuple[int, ...]
    devices: tuple[DeviceFit, ...] = ()
    notices: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        configuration: str,
        training: Training,
        found: Prediction,
        workspace: int,
        devices: tuple[DeviceFit, ...] = (),
        notices: tuple[str, ...] = (),
    ) -> Estimate:
        """From a prediction without workspaces, and their bytes."""
        parts = found.model_dump(exclude={"train_peak_bytes"})
        return cls(
            configuration=configuration,
            training=training,
            train_peak_bytes=found.train_peak_bytes + workspace,
            workspace_bytes=workspace,
            devices=devices,
            notices=notices,
            **parts,
        )


class Point(_Value):
    """One candidate of a space with its predicted peak."""

    configuration: str
    train_peak_bytes: int
    trainable_parameters: int
    parameters: dict[str, bool | int | float | str]
    """What a sampler proposes for it."""


class Share(_Value):
    """How much of a space lies within a limit."""

    limit: str
    """A device's name, or `--max-memory`."""
    limit_bytes: int
    share: float
    """Of the candidates that were predicted, from 0 to 1."""


class Bin(_Value):
    """One bar of a histogram."""

    from_bytes: int
    to_bytes: int
    count: int


class SpaceEstimate(_Value):
    """The training memory of a seeded sample of a space."""

    source: Literal["predicted"] = "predicted"
    space: str
    training: Training
    seed: int
    candidates: int
    """Drawn, all different."""
    unknown: dict[str, int]
    """Why some have no prediction, and how many each."""
    quantiles: dict[str, int]
    """`0`, `0.25`, `0.5`, `0.75`, `0.95`, `1`: bytes of the predicted peaks."""
    histogram: tuple[Bin, ...]
    smallest: Point | None
    largest: Point | None
    shares: tuple[Share, ...]
    notices: tuple[str, ...] = ()


class TimeEstimate(_Value):
    """How long a budget lasts, from a few short trainings on this machine: measured, then extrapolated."""

    source: Literal["extrapolated from short trainings"] = "extrapolated from short trainings"
    device: str
    probed: int
    """Candidates that were trained, each twice for a few steps."""
    probe_s: float
    """What the probe took."""
    fixed_s: float
    """Mean seconds of a trial that do not depend on its steps: insertion, validation, saving."""
    step_s: float
    """Mean seconds of an optimiser step."""
    steps: int
    """Of a whole trial."""
    trial_s: float
    workers: int
    budget: str
    trials: int
    """That the budget pays for."""
    wall_s: float
    gpu_hours: float
    ends_by: Literal["trials", "seconds", "gpu_seconds"]
    """The limit of the budget that runs out first."""
