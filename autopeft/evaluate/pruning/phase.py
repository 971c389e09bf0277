"""The estimation phase of a trial and the one pruning step that ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from autopeft.domain.candidate import Candidate, Pruning
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.insertion import Inserted
from autopeft.evaluate.pruning import scores
from autopeft.evaluate.pruning.criteria import ALL
from autopeft.evaluate.pruning.decision import Scores, decide
from autopeft.evaluate.pruning.importance import Importance
from autopeft.evaluate.pruning.live import live_sites
from autopeft.evaluate.pruning.masks import Mask, Masks
from autopeft.evaluate.pruning.shape import dropped, sites
from autopeft.evaluate.pruning.surgery import Folded, Pruned, prune
from autopeft.evaluate.pruning.wiring import Wiring, find_wiring
from autopeft.evaluate.untouched import Untouched

PROBE_ROWS = 2
"""Rows that are shown to the model to find out how its attention counts heads."""


def estimation_steps(pruning: Pruning, steps: int) -> int:
    """Optimiser steps of the estimation: the share of all planned ones, at least one, and one is left to train.

    Raises:
        UserError: where there is one step only.
    """
    if steps < 2:
        raise UserError(
            Problem("training.steps", f"{steps} is too few to estimate, prune and train", "2 or more", "Add steps.")
        )
    return min(max(1, round(float(pruning.settings["estimation"]) * steps)), steps - 1)


def wiring_of(
    model: Any,
    candidate: Candidate,
    layout: ModelLayout,
    batch: Mapping[str, torch.Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Wiring:
    """How the untouched model's attention is told of its heads; asked before anything is put in, so that it fails soon.

    Raises:
        UserError: where the candidate's pruning does not fit the model.
    """
    pruning = candidate.pruning
    assert pruning is not None
    problems = next(one for one in ALL if one.facts.name == pruning.criterion).problems(candidate, layout)
    if problems:
        raise UserError(*problems)
    queries, within = layout.heads // layout.kv_heads, pruning.settings["shared_heads"] == "queries"
    count = queries if within and queries > 1 else layout.kv_heads
    keep = count - dropped(float(pruning.settings["heads"]), count)
    if keep == count:
        return Wiring()
    rows = {name: tensor[:PROBE_ROWS] for name, tensor in batch.items() if name != "labels"}
    with autocast():
        return find_wiring(model, layout, rows, keep, within=within)


def apply(untouched: Untouched, inserted: Inserted, pruned: Pruned) -> int:
    """Cut a composed model as was decided, now or before an interruption; returns the bytes copied."""
    assert inserted.composed is not None
    inserted.composed, copied = prune(untouched, inserted.composed, inserted.insertions, inserted.layout, pruned)
    inserted.pruned = pruned
    return copied


class Estimation:
    """Masks in the model and importance watched, from the start of the estimation to the pruning step.

    The controls run the same estimation, masks included, and differ in the scores alone.
    """

    def __init__(
        self,
        untouched: Untouched,
        inserted: Inserted,
        pruning: Pruning,
        wiring: Wiring,
        *,
        seed: int,
        steps: int,
        passes: int,
    ) -> None:
        """Put the masks into a composed model.

        Args:
            untouched: Of the base model.
            inserted: What was put into it, in place.
            pruning: Of the candidate.
            wiring: Of the model.
            seed: Of the trial, for `random`.
            steps: Optimiser steps of the estimation.
            passes: Backward passes per step.
        """
        self._untouched, self._inserted, self._pruning = untouched, inserted, pruning
        self._wiring, self._seed = wiring, seed
        self._layout = inserted.layout
        self._sites = sites(inserted.insertions, self._layout)
        self._live = live_sites(inserted.base, self._layout, self._sites)
        self._heads = float(pruning.settings["heads"]) > 0
        self._units = float(pruning.settings["ffn"]) > 0
        penalty = float(pruning.settings["penalty"]) / passes
        self._masks = Masks(inserted.base, self._layout, heads=self._heads, units=self._units, penalty=penalty)
        inserted.undecayed = self._masks.parameters()
        self._importance = (
            Importance(inserted.base, self._live.values(), steps, passes) if pruning.criterion == "light-peft" else None
        )

    def prune(self) -> int:
        """End the estimation: take masks and watchers out, decide, and cut the model; returns the bytes copied.

        `inserted` then holds what is left of the insertions and what was pruned.
        """
        if self._importance is not None:
            self._importance.remove()
        self._masks.remove()
        self._inserted.undecayed = ()
        folded = Folded()
        if self._pruning.settings["masks"] == "fold":
            folded = Folded(_values(self._masks.heads), _values(self._masks.units))
        pruned = Pruned(decide(self._scores(), self._pruning.settings), self._wiring, folded)
        return apply(self._untouched, self._inserted, pruned)

    def state(self) -> dict[str, Any]:
        """What the decision will depend on beside the weights, masks included, which are the training's to keep."""
        return {} if self._importance is None else {"importance": self._importance.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same candidate and seed, as if never interrupted."""
        if self._importance is not None:
            self._importance.load(state["importance"])

    def _scores(self) -> Scores:
        within = self._pruning.settings["shared_heads"] == "queries"
        if self._importance is not None:
            return scores.light_peft(self._masks, self._importance, self._layout, within=within)
        which = {"heads": self._heads, "units": self._units, "within": within}
        if self._pruning.criterion == "random":
            return scores.random(self._sites, self._layout, self._seed, **which)
        return scores.magnitude(self._inserted.base, self._live, self._layout, self._wiring, **which)


def _values(masks: Mapping[int, Mask]) -> dict[int, torch.Tensor]:
    return {index: mask.values.detach().to("cpu", copy=True) for index, mask in masks.items()}
