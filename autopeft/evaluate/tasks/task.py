"""What a task is: how its rows become batches, and what makes a score of a model.

Rows are read by `autopeft.evaluate.data`, which also decides the task; the loss is the model's own, from the labels
that a batch carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from autopeft.domain.measurements import PeakMemory
from autopeft.domain.results import TaskInfo
from autopeft.evaluate.data.batches import Batch


@dataclass(frozen=True)
class Scored:
    """What an exam found."""

    quality: dict[str, float]
    """Every metric of the task; NaN where one is not defined."""
    predictions: list[str] | list[float]
    """One per row, in the order of the split and in the user's own terms."""
    seconds: float
    row_seconds: float
    """Median over the batches of seconds per row, in the phase that the headline metric comes from."""


class Exam(Protocol):
    """One split, ready to be scored any number of times."""

    @property
    def batches(self) -> list[Batch]:
        """Every row once, with labels."""
        ...

    def score(self, model: Any, device: torch.device, dtype: torch.dtype) -> Scored:
        """Metrics and predictions of a model, which it puts into evaluation mode.

        Raises:
            NotFiniteError: where a prediction is NaN or infinite.
        """
        ...

    def peak(self, model: Any, device: torch.device, dtype: torch.dtype) -> PeakMemory | None:
        """The most bytes live in the phase that the headline metric comes from, on the largest batch of it."""
        ...


class Task(Protocol):
    """Batches and exams of one data set for one model."""

    @property
    def info(self) -> TaskInfo: ...

    def train_batches(self) -> list[Batch]:
        """Every training row once, in batches of rows of similar length."""
        ...

    def exam(self, split: str) -> Exam | None:
        """A split to score; None where the data has no such split."""
        ...

    def notices(self) -> list[str]:
        """What a person should know of the rows as this model sees them, one sentence each.

        Raises:
            UserError: where this model or its tokenizer cannot do the task.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """Sizes that both tasks need."""

    batch_size: int
    max_tokens: int
    """Of one row, special tokens included."""
    max_positions: int | None
    """Of the model."""
    max_new_tokens: int
    seed: int
    """Of the order of training rows."""
