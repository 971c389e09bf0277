"""The importance of PEFT modules and ranks as the paper says it, one number at a time; for tests.

Light-PEFT (Gu et al., Findings of ACL 2024), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def module_importance(
    deltas: Sequence[torch.Tensor], bases: Sequence[torch.Tensor], tokens: Sequence[torch.Tensor]
) -> float:
    """Mean over the passes of the mean over real tokens of `||delta|| / ||base||`.

    Args:
        deltas: Per pass what the module adds, `[batch, seq, out]`.
        bases: Per pass what it is added to, `[batch, seq, out]`.
        tokens: Per pass 1 at real tokens and 0 at padding, `[batch, seq]`.
    """
    found = []
    for delta, base, real in zip(deltas, bases, tokens, strict=True):
        ratios = [
            _length(delta[row, token]) / _length(base[row, token])
            for row in range(real.shape[0])
            for token in range(real.shape[1])
            if real[row, token]
        ]
        found.append(math.fsum(ratios) / len(ratios))
    return math.fsum(found) / len(found)


def rank_importance(
    down: Sequence[tuple[torch.Tensor, torch.Tensor]], up: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> list[float]:
    """Per rank the mean over steps of `|mean_i A_ji dL/dA_ji| + |mean_o B_oj dL/dB_oj|`.

    Args:
        down: Per step the matrix down to the ranks and its gradient, `[ranks, in]` each.
        up: Per step the matrix up from them and its gradient, `[out, ranks]` each.
    """
    ranks = down[0][0].shape[0]
    found = [0.0] * ranks
    for (a, of_a), (b, of_b) in zip(down, up, strict=True):
        for rank in range(ranks):
            inward = [float(value) * float(slope) for value, slope in zip(a[rank], of_a[rank], strict=True)]
            outward = [float(value) * float(slope) for value, slope in zip(b[:, rank], of_b[:, rank], strict=True)]
            found[rank] += abs(math.fsum(inward) / len(inward)) + abs(math.fsum(outward) / len(outward))
    return [total / len(down) for total in found]


def _length(vector: torch.Tensor) -> float:
    return math.sqrt(math.fsum(float(value) ** 2 for value in vector))
