"""What was pruned, as JSON and tensors beside a saved adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from autopeft.evaluate.pruning.decision import Decision
from autopeft.evaluate.pruning.surgery import Folded, Pruned
from autopeft.evaluate.pruning.wiring import Wiring

FOLDED = "folded_masks."
"""Before the names of the tensors that are no parameters of the model: masks to multiply into the base's weights."""


def to_record(pruned: Pruned) -> dict[str, Any]:
    """JSON: per layer the heads and the FFN units that stay, and the ranks of each module that stays.

    Heads are groups, or query heads where it says `within`.

    Indices are of the unpruned model, written as runs: `0-3,5`.
    """
    decision = pruned.decision
    return {
        "heads": decision.heads and [_runs(kept) for kept in decision.heads],
        "ffn": decision.units and [_runs(kept) for kept in decision.units],
        "ranks": {key: _runs(kept) for key, kept in decision.ranks.items()},
        "spared_ffn": decision.spared,
        "within": decision.within,
        "wiring": pruned.wiring.model_dump(mode="json"),
    }


def folded_tensors(pruned: Pruned) -> dict[str, torch.Tensor]:
    """The masks that were folded, by the names that they are saved under."""
    found = {f"{FOLDED}heads.{layer}": mask for layer, mask in pruned.folded.heads.items()}
    return found | {f"{FOLDED}ffn.{layer}": mask for layer, mask in pruned.folded.units.items()}


def from_record(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Pruned:
    """The inverse of `to_record` and `folded_tensors`.

    Raises:
        ValueError, KeyError: where the record is not of this form.
    """
    heads, units = record["heads"], record["ffn"]
    return Pruned(
        Decision(
            heads=None if heads is None else tuple(_indices(text) for text in heads),
            units=None if units is None else tuple(_indices(text) for text in units),
            ranks={key: _indices(text) for key, text in record["ranks"].items()},
            spared=int(record["spared_ffn"]),
            within=bool(record.get("within", False)),
        ),
        Wiring.model_validate(record["wiring"]),
        Folded(_of("heads", tensors), _of("ffn", tensors)),
    )


def _of(part: str, tensors: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    before = f"{FOLDED}{part}."
    return {int(name.removeprefix(before)): mask for name, mask in tensors.items() if name.startswith(before)}


def _runs(indices: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _indices(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for run in text.split(",") if text else []:
        first, _, last = run.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
