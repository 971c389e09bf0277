"""How much computing a candidate's training takes, as far as its layers tell."""

from __future__ import annotations

from autopeft.domain.candidate import Candidate


def relative_work(candidate: Candidate, depth: int) -> float:
    """Arithmetic of a training step, in forward passes of the frozen layers: from 1 to 2.

    The forward pass goes through all `depth` layers. The backward pass goes down to the lowest that holds something
    trainable, and needs as much for each: gradients of frozen weights are not computed, those of what was put in are
    few. An insertion without layers is in front of them all.
    """
    if not candidate.insertions:
        return 1.0
    lowest = min(min(insertion.layers, default=0) for insertion in candidate.insertions)
    return 1.0 + (depth - lowest) / depth
