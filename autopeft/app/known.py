"""What is known of a candidate before it trains, for samplers that use it."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.domain.candidate import Candidate
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import Known
from autopeft.evaluate.methods import METHODS


@dataclass(frozen=True)
class KnownFromLayout:
    """Implements `autopeft.domain.ports.KnownObjectives` from closed forms over the model's layout.

    Today the trainable parameters. With pruning they are known only after the estimation, so nothing is said then.
    """

    layout: ModelLayout

    def __call__(self, candidate: Candidate) -> Known | None:
        if candidate.pruning is not None or any(one.method not in METHODS for one in candidate.insertions):
            return None
        inserted = sum(METHODS[one.method].trainable(one, self.layout) for one in candidate.insertions)
        return Known({"trainable_parameters": float(inserted + self.layout.head_parameters)})
