"""From scores to what is kept: exact counts, with ties broken the same way everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.domain.candidate import Setting
from autopeft.evaluate.pruning.shape import dropped

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """How much each part matters; higher is kept longer. NaN and infinities count as 0, as in the paper's code."""

    heads: tuple[Values, ...] | None = None
    """Per layer `[groups]`, or `[groups, query heads]` where as many go of each group; None where no heads do."""
    units: tuple[Values, ...] | None = None
    """Per layer `[FFN width]`; None where no units are pruned."""
    modules: Mapping[str, float] = field(default_factory=dict)
    """By key of the site."""
    ranks: Mapping[str, Values] = field(default_factory=dict)
    """By key of the site, `[ranks]`."""


@dataclass(frozen=True)
class Decision:
    """What stays of the backbone and of the PEFT modules; indices are of the unpruned model, ascending."""

    heads: tuple[tuple[int, ...], ...] | None
    """Per layer the groups of heads that stay, or with `within` the query heads; None keeps all."""
    units: tuple[tuple[int, ...], ...] | None
    """Per layer the FFN units that stay; None keeps all."""
    ranks: Mapping[str, tuple[int, ...]]
    """By key of each surviving site the ranks that stay, at least one."""
    spared: int = 0
    """FFN units that a global count would have dropped, and that stay as the last of their layer."""
    within: bool = False
    """Whether query heads went, as many of each group, and no keys and values."""


def decide(scores: Scores, settings: Mapping[str, Setting]) -> Decision:
    """Prune by the ratios `heads`, `ffn`, `modules` and `ranks` of the settings; Light-PEFT, table of the pruning step.

    Heads per layer, query heads per group; FFN units over all layers together or per layer (`ffn_scope`), of which
    every layer keeps one; modules over all of them; ranks over all of the surviving modules, of which one without ranks
    is left out. One module and one rank stay in any case: few modules times a high ratio may round to none. Among equal
    scores the lower index goes first, and then the lower layer, so that equal layers lose equally.
    """
    heads = units = None
    spared = 0
    if scores.heads is not None:
        heads = tuple(_kept_heads(one, float(settings["heads"])) for one in scores.heads)
    if scores.units is not None:
        if settings["ffn_scope"] == "layer":
            units = tuple(_kept_alone(one, float(settings["ffn"])) for one in scores.units)
        else:
            units, spared = _kept_together(scores.units, float(settings["ffn"]), at_least=1)
    keys = list(scores.modules)
    values = np.array([scores.modules[key] for key in keys], dtype=np.float64)
    survivors = [keys[index] for index in _kept_alone(values, float(settings["modules"]))]
    ranks, _ = _kept_together([scores.ranks[key] for key in survivors], float(settings["ranks"]), at_least=0)
    kept = {key: indices for key, indices in zip(survivors, ranks, strict=True) if indices}
    within = scores.heads is not None and any(one.ndim == 2 for one in scores.heads)
    return Decision(heads, units, kept, spared, within)


def _kept_heads(scores: Values, ratio: float) -> tuple[int, ...]:
    if scores.ndim == 1:
        return _kept_alone(scores, ratio)
    queries = scores.shape[1]
    return tuple(group * queries + query for group, row in enumerate(scores) for query in _kept_alone(row, ratio))


def _kept_alone(scores: Any, ratio: float) -> tuple[int, ...]:
    return _kept_together([scores], ratio, at_least=0)[0][0]


def _kept_together(scores: Sequence[Any], ratio: float, at_least: int) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Indices that stay of each list when the lowest of all are dropped, and how many were spared as the last ones.

    The number dropped is exact: where one is spared, the next lowest goes.
    """
    if not scores:
        return (), 0
    values = np.concatenate([_finite(one) for one in scores])
    layer = np.concatenate([np.full(len(one), number) for number, one in enumerate(scores)])
    index = np.concatenate([np.arange(len(one)) for one in scores])
    left = [len(one) for one in scores]
    to_drop, spared = min(dropped(ratio, len(values)), max(0, len(values) - 1)), 0
    gone: list[set[int]] = [set() for _ in scores]
    for position in np.lexsort((layer, index, values)):
        if to_drop == 0:
            break
        of, which = int(layer[position]), int(index[position])
        if left[of] <= at_least:
            spared += 1
            continue
        left[of] -= 1
        to_drop -= 1
        gone[of].add(which)
    return tuple(
        tuple(which for which in range(len(one)) if which not in gone[number]) for number, one in enumerate(scores)
    ), spared


def _finite(values: Any) -> Values:
    return np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
