"""Token ids and fixed batches: made once per worker, used by every trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autopeft.domain.candidate import digest_of
from autopeft.evaluate.data.table import Split

MEGA_BATCHES = 64
"""Batches whose rows are sorted by length together: more pads less, fewer mixes rows more."""


NO_LABEL = -100
"""The label of a token that no loss is computed of, as every model of transformers has it."""


@dataclass(frozen=True)
class Padding:
    """What fills the short rows of a batch; always on the right, where classification heads expect it."""

    id: int
    token_type_id: int = 0
    side: str = "right"

    @classmethod
    def of(cls, tokenizer: Any, pad_id: int | None = None) -> Padding:
        """`pad_id`, else the tokenizer's pad token, or its end-of-text token where it has none, as decoders do.

        A decoder's `config.pad_token_id` must be the same id, for its head looks for the last other token.

        Raises:
            ValueError: where the tokenizer has neither.
        """
        found = pad_id
        if found is None:
            found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if found is None:
            raise ValueError("the tokenizer has neither a pad token nor an end-of-text token to pad with")
        return cls(int(found), int(getattr(tokenizer, "pad_token_type_id", 0) or 0))


@dataclass(frozen=True)
class TokenisedSplit:
    """Rows as token ids, without padding."""

    token_ids: tuple[tuple[int, ...], ...]
    token_type_ids: tuple[tuple[int, ...], ...] | None
    """Which sentence each token is of; None where the tokenizer does not say."""
    labels: tuple[int, ...] | tuple[float, ...] | tuple[tuple[int, ...], ...]
    """One per row, or one per token of each row."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together."""

    inputs: dict[str, Tensor]
    """`input_ids`, `attention_mask` and, where the tokenizer gives them, `token_type_ids`; int64 [rows, padded]."""
    labels: Tensor
    """`[rows]`, int64 class indices or float32 scores; `[rows, padded]`, int64, where every token has one."""
    row_ids: tuple[int, ...]
    """Positions of the rows in their split."""
    tokens: int
    """Tokens that are not padding."""

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return len(self.row_ids)


def tokenised(split: Split, tokenizer: Any, max_tokens: int) -> TokenisedSplit:
    """Token ids of every row, cut to `max_tokens` (special tokens included) or to what the tokenizer allows."""
    limit = min(max_tokens, int(tokenizer.model_max_length))
    pairs = None if split.pairs is None else list(split.pairs)
    found = tokenizer(list(split.texts), pairs, truncation=True, max_length=limit, padding=False)
    types = found.get("token_type_ids")
    return TokenisedSplit(
        tuple(tuple(row) for row in found["input_ids"]),
        None if types is None else tuple(tuple(row) for row in types),
        split.labels,
    )


def train_batches(split: TokenisedSplit, batch_size: int, seed: int, pad: Padding) -> list[Batch]:
    """Every row once, in batches of rows of similar length; the same for every trial of a worker.

    Rows are shuffled with `seed`, then sorted by length within every `MEGA_BATCHES` batches. Only the last batch may be
    smaller than `batch_size`.
    """
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    mega = batch_size * MEGA_BATCHES
    rows: list[int] = []
    for start in range(0, len(order), mega):
        rows += sorted(order[start : start + mega], key=lambda row: len(split.token_ids[row]))
    return _cut(split, rows, batch_size, pad)


def evaluation_batches(split: TokenisedSplit, batch_size: int, pad: Padding) -> list[Batch]:
    """Every row once, sorted by length; `Batch.row_ids` puts predictions back in order."""
    return _cut(split, sorted(range(len(split)), key=lambda row: len(split.token_ids[row])), batch_size, pad)


def plan(batches: Sequence[Batch], passes: int, seed: int) -> Iterator[Batch]:
    """The batches of `passes` forward passes: all of them in every epoch, in an order drawn anew from `seed`.

    Raises:
        ValueError: where there is no batch.
    """
    if not batches:
        raise ValueError("there are no batches to plan")
    return islice(_epochs(batches, seed), passes)


def plan_digest(batches: Sequence[Batch]) -> str:
    """Digest of which rows are trained on together, and of their tokens."""
    return digest_of([[batch.row_ids, batch.tokens, int(batch.inputs["input_ids"].sum())] for batch in batches])


def _epochs(batches: Sequence[Batch], seed: int) -> Iterator[Batch]:
    random = np.random.default_rng(seed)
    while True:
        for index in random.permutation(len(batches)):
            yield batches[index]


def _cut(split: TokenisedSplit, rows: Sequence[int], batch_size: int, pad: Padding) -> list[Batch]:
    return [_batch(split, rows[start : start + batch_size], pad) for start in range(0, len(rows), batch_size)]


def _batch(split: TokenisedSplit, rows: Sequence[int], pad: Padding) -> Batch:
    lengths = torch.tensor([len(split.token_ids[row]) for row in rows])
    # A row without any token is read as one pad token; no row may be masked out completely.
    padded = max(1, int(lengths.max()))
    mask = (torch.arange(padded) < lengths.clamp(min=1)[:, None]).long()
    inputs = {"input_ids": _filled([split.token_ids[row] for row in rows], padded, pad.id), "attention_mask": mask}
    if split.token_type_ids is not None:
        inputs["token_type_ids"] = _filled([split.token_type_ids[row] for row in rows], padded, pad.token_type_id)
    return Batch(inputs, _labels(split, rows, padded), tuple(rows), int(lengths.sum()))


def _labels(split: TokenisedSplit, rows: Sequence[int], padded: int) -> Tensor:
    labels = [split.labels[row] for row in rows]
    per_token = [label for label in labels if isinstance(label, tuple)]
    return _filled(per_token, padded, NO_LABEL) if per_token else torch.tensor(labels)


def _filled(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    """`[rows, width]`, int64, filled up on the right."""
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)
