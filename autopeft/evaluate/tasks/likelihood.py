"""How likely a model finds the tokens that it shall write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from autopeft.evaluate.arithmetic import autocast, moved
from autopeft.evaluate.data.batches import NO_LABEL, Batch
from autopeft.evaluate.outcomes import NotFiniteError


@dataclass(frozen=True)
class Likelihoods:
    """Per row, in the order of the split."""

    log_probability: torch.Tensor
    """float64 `[rows]`, summed over the row's labelled tokens."""
    tokens: torch.Tensor
    """int64 `[rows]`, how many these are."""
    correct: torch.Tensor
    """int64 `[rows]`, of how many the model finds the right one most likely."""
    seconds: float
    row_seconds: tuple[float, ...]
    """Seconds per row, batch by batch."""

    @property
    def per_token(self) -> torch.Tensor:
        """float64 `[rows]`, mean log-probability of a token: the likelihood that does not fall with length."""
        return self.log_probability / self.tokens.clamp(min=1)


def likelihoods(model: Any, batches: Sequence[Batch], device: torch.device, dtype: torch.dtype) -> Likelihoods:
    """Score every row of these batches in evaluation mode.

    Raises:
        NotFiniteError: where a prediction is NaN or infinite.
    """
    model.eval()
    rows = 1 + max(row for batch in batches for row in batch.row_ids)
    total, tokens, correct = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows).long(), torch.zeros(rows).long()
    row_seconds = []
    started = time.perf_counter()
    for batch in batches:
        began = time.perf_counter()
        found = forward_scores(model, batch, device, dtype)
        at = torch.tensor(batch.row_ids)
        # The copies to the host wait for the device, so that the clock needs no synchronisation of its own.
        total[at], tokens[at], correct[at] = (one.cpu() for one in found)
        row_seconds.append((time.perf_counter() - began) / batch.rows)
    if not bool(torch.isfinite(total).all()):
        raise NotFiniteError("the model's predictions are not finite")
    return Likelihoods(total, tokens, correct, time.perf_counter() - started, tuple(row_seconds))


def forward_scores(
    model: Any, batch: Batch, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed log-probabilities, numbers and hits of the labelled tokens of each row, `[rows]` each."""
    inputs = moved(batch, device)
    labels = inputs.pop("labels")
    with torch.no_grad(), autocast(device, dtype):
        # Prompts of peft's make the logits longer than the row, at its beginning.
        logits = model(**inputs).logits[:, -labels.shape[1] :]
    wanted, said = labels[:, 1:], logits[:, :-1]
    counted = wanted != NO_LABEL
    # Only the labelled places are turned into float32, or a large vocabulary would fill the memory.
    chosen = said[counted].float()
    truth = wanted[counted]
    found = log_softmax(chosen, dim=-1).gather(1, truth[:, None]).squeeze(1).double()
    hits = (chosen.argmax(dim=-1) == truth).long()
    row = counted.nonzero()[:, 0]
    sums = torch.zeros(len(labels), dtype=torch.float64, device=labels.device).index_add_(0, row, found)
    right = torch.zeros(len(labels), dtype=torch.long, device=labels.device).index_add_(0, row, hits)
    return sums, counted.sum(dim=1), right
