"""What a training step is predicted for: the shape of its batch, and how and where it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

OPTIMISERS: Mapping[str, float] = {"adamw": 8.0, "adamw-8bit": 2.0 + 8 / 256, "sgd": 0.0, "sgd-momentum": 4.0}
"""Bytes of optimiser state per trainable parameter in float32. Two moments of AdamW in float32; in 8 bits with one
float32 scale per 256 values each (Dettmers et al., ICLR 2022, arXiv:2110.02861); one of momentum; none."""


@dataclass(frozen=True)
class Setup:
    """One optimiser step, as its memory depends on it."""

    rows: int
    """Rows of the largest batch of one forward pass."""
    tokens: int
    """Tokens of its longest row, to which all are padded."""
    padded: bool = True
    """Whether some row is shorter, so that attention needs a mask."""
    target: Literal["cuda", "cpu"] = "cuda"
    lower: torch.dtype | None = None
    """What autocast computes in; None without autocast."""
    optimizer: str = "adamw"
    """One of `OPTIMISERS`, for a candidate whose method brings none of its own."""
    clip: bool = True
    """Whether the norm of the gradient is limited."""
    checkpointing: bool = False
    """Whether every block's forward pass is computed again in the backward pass in place of keeping what it saved."""
    accumulates: bool = False
    """Whether the step has several forward passes, so that the gradients of an earlier one are there."""
    evaluating: bool = False
    """Whether the model is in evaluation mode, without dropout, as where a policy asks for gradients between steps."""
    caches: bool = False
    """Whether a decoder returns its keys and values, where its config says so; a training of this project asks it not
    to."""
    holds_outputs: bool = False
    """Whether what the model returned (logits, keys and values) lives until the next forward pass has returned, as in a
    plain loop that assigns it to a name; a training of this project drops it."""
