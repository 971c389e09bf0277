"""The numbers of one trial while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from autopeft.domain.measurements import Measurements, Rung
from autopeft.evaluate.train import Step

FIRST_LOSSES = 20
"""So many losses from the start of training are kept, to compare runs with."""


class Tally:
    """Collects what `Measurements` will say; can be saved in the middle and gone on with."""

    def __init__(self, planned: int, **known: Any) -> None:
        """`known` are fields of `Measurements` that are known from the start."""
        self.found: dict[str, Any] = {**known, "planned_steps": planned, "train_tokens": 0}
        """Fields of `Measurements`; anybody may add some."""
        self.setup_s = 0.0
        self._planned = planned
        self._rungs: list[Rung] = []
        self._losses: list[float] = []
        """Since the last rung."""

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return int(self.found.get("steps", 0))

    @property
    def missing_rung(self) -> bool:
        """Whether nothing was reported after the last step."""
        return not self._rungs or self._rungs[-1].step < self.steps

    def measured(self, **more: Any) -> Measurements:
        """The numbers so far."""
        return Measurements(**self.found, **more, rungs=tuple(self._rungs), setup_s=self.setup_s)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to a time that several steps take together."""
        self.found[name] = self.found.get(name, 0.0) + seconds

    def note(self, step: Step) -> None:
        """An optimiser step was done."""
        self._losses.append(step.loss)
        self.add_seconds("train_s", step.seconds)
        self.found |= {
            "steps": step.number,
            "train_tokens": self.found["train_tokens"] + step.tokens,
            "first_losses": (*self.found.get("first_losses", ()), step.loss)[:FIRST_LOSSES],
        }

    def rung(self, quality: dict[str, float]) -> Rung:
        """What there is to report after the last step, with this validation quality."""
        rung = Rung(
            step=self.steps,
            planned_steps=self._planned,
            quality=quality,
            train_loss=math.fsum(self._losses) / len(self._losses),
            train_s=self.found["train_s"],
            evaluate_s=self.found["evaluate_s"],
            train_peak=self.found.get("train_peak"),
        )
        self._rungs.append(rung)
        self._losses = []
        return rung

    def state(self) -> dict[str, Any]:
        """All of it, as JSON values and a tensor."""
        return {
            "measured": self.measured().model_dump(mode="json", exclude_unset=True),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the seconds of setting up add up, and this very resumption is noted."""
        measured = Measurements.model_validate(state["measured"])
        self.found |= {name: getattr(measured, name) for name in measured.model_fields_set - {"rungs", "setup_s"}}
        self.found["resumed_at"] = (*measured.resumed_at, measured.steps)
        self.setup_s += measured.setup_s or 0.0
        self._rungs = list(measured.rungs)
        self._losses = state["losses"].tolist()
