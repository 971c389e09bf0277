"""What stays loaded between the trials of one worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from autopeft.domain.layout import ModelLayout
from autopeft.domain.measurements import PeakMemory
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.tasks import Exam, Task
from autopeft.evaluate.untouched import Untouched


@dataclass
class Bench:
    """Model, data and recipe."""

    spec: SearchSpec
    task: Task
    layout: ModelLayout
    model: Any
    untouched: Untouched
    train: list[Batch]
    validation: Exam
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights."""
    recipe: str
    """Identity of what all trials share (`resumption.recipe_digest`)."""
    load_peak: PeakMemory | None = None
    """Of loading the model."""
    taken_bytes: int | None = None
    """What of the device was taken before."""
