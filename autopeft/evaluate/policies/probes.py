"""Rows of the training set on which a policy tries something."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from autopeft.evaluate.data.batches import Batch


def probe_rows(batches: Sequence[Batch], rows: int, random: np.random.Generator) -> list[Batch]:
    """So many training rows, or all there are: random batches of the training, the last of them cut.

    They stay in the batches that they are trained in, so that nothing is padded anew.
    """
    different = list({batch.row_ids: batch for batch in batches}.values())
    found: list[Batch] = []
    for index in random.permutation(len(different)):
        left = rows - sum(batch.rows for batch in found)
        if left <= 0:
            break
        batch = different[index]
        found.append(batch if batch.rows <= left else _some(batch, random.permutation(batch.rows)[:left]))
    return found


def _some(batch: Batch, rows: np.ndarray) -> Batch:
    import torch

    places = torch.as_tensor(np.sort(rows))
    inputs = {name: tensor[places] for name, tensor in batch.inputs.items()}
    return dataclasses.replace(
        batch,
        inputs=inputs,
        labels=batch.labels[places],
        row_ids=tuple(batch.row_ids[index] for index in places.tolist()),
        tokens=int(inputs["attention_mask"].sum()),
    )
