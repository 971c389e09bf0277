"""Memory that was foretold, not measured: one number and what it consists of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Prediction(BaseModel):
    """The training memory of one candidate, in bytes; the parts sum to `train_peak_bytes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_peak_bytes: int
    """Most bytes live at once in the heaviest step, base model included."""
    train_peak_reserved_bytes: int | None = None
    """What a caching allocator holds of the device for it, its workspaces included; None where none is modelled."""
    trainable_parameters: int
    """PEFT weights and head."""
    where: str
    """The part of the step in which the peak lies."""
    weights_bytes: int
    """Parameters and buffers of the base model."""
    peft_bytes: int
    """Parameters and buffers that the methods added, and the copy of the head that is trained."""
    optimizer_bytes: int
    inputs_bytes: int
    gradient_bytes: int
    """Gradients of trained parameters that are there at the peak, those that are being made excluded."""
    activation_bytes: int
    """What the blocks keep for the backward pass at the peak."""
    head_bytes: int
    """Logits, loss and their gradients that are there at the peak."""
    temporary_bytes: int
    """The rest: what the part at work needs while it runs, and what the embeddings keep."""
    layer_activation_bytes: tuple[int, ...] = ()
    """What each block keeps for the backward pass, from the input up."""
