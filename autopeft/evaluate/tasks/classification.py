"""Sequence classification, and regression as the classification with one output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autopeft.domain.measurements import PeakMemory
from autopeft.domain.results import TaskInfo
from autopeft.evaluate.data.batches import Batch, Padding, evaluation_batches, tokenised, train_batches
from autopeft.evaluate.data.table import Split
from autopeft.evaluate.prediction import inference_peak, predict
from autopeft.evaluate.quality import metrics, predictions
from autopeft.evaluate.tasks.task import Limits, Scored


@dataclass(frozen=True)
class ClassificationExam:
    """A labelled split; one forward pass per batch says everything."""

    info: TaskInfo
    batches: list[Batch]

    def score(self, model: Any, device: torch.device, dtype: torch.dtype) -> Scored:
        """See `Exam.score`."""
        found = predict(model, self.batches, device, dtype)
        rows = [row for batch in self.batches for row in batch.row_ids]
        said: list[Any] = [text for _, text in sorted(zip(rows, predictions(self.info, found.logits), strict=True))]
        return Scored(metrics(self.info, found.logits, found.labels), said, found.seconds, found.row_seconds)

    def peak(self, model: Any, device: torch.device, dtype: torch.dtype) -> PeakMemory | None:
        """Of one forward pass; see `Exam.peak`."""
        return inference_peak(model, self.batches, device, dtype)


class SequenceClassification:
    """Labelled texts or pairs of texts for a model with a new head."""

    def __init__(
        self, info: TaskInfo, splits: Mapping[str, Split], tokenizer: Any, padding: Padding, limits: Limits
    ) -> None:
        self.info = info
        self._splits = splits
        self._tokenizer = tokenizer
        self._padding = padding
        self._limits = limits

    def train_batches(self) -> list[Batch]:
        """See `Task.train_batches`."""
        rows = tokenised(self._splits["train"], self._tokenizer, self._limits.max_tokens)
        return train_batches(rows, self._limits.batch_size, self._limits.seed, self._padding)

    def exam(self, split: str) -> ClassificationExam | None:
        """See `Task.exam`."""
        if split not in self._splits:
            return None
        rows = tokenised(self._splits[split], self._tokenizer, self._limits.max_tokens)
        return ClassificationExam(self.info, evaluation_batches(rows, self._limits.batch_size, self._padding))

    def notices(self) -> list[str]:
        """Nothing: every tokenizer and every model with a head can do it."""
        return []
