"""One point of a search space, fully resolved: what will be trained, and nothing else."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict

Setting = bool | int | float | str
"""One value of a parameter or of a method's setting; JSON scalars only, so that digests are stable."""


def digest_of(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `value` (sorted keys, no spaces).

    Raises:
        ValueError: where `value` holds a NaN or an infinity, which JSON cannot say.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Insertion(BaseModel):
    """One PEFT method put into some modules of some layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    """Name of the method in the registry, for example `lora`."""
    layers: tuple[int, ...]
    """Indices of the layers that get it, ascending, 0 is nearest to the input."""
    modules: tuple[str, ...]
    """Roles of the modules in each of these layers, as `ModuleLayout.role` names them, sorted."""
    settings: dict[str, Setting] = {}
    """The method's own knobs, for example `rank`, `alpha_ratio`, `dropout`, `variant`."""


class Pruning(BaseModel):
    """How much of the backbone, and of the PEFT modules in it, is kept after a short estimation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    criterion: str
    """Name of the criterion in the registry: `light-peft`, `random` or `magnitude`."""
    settings: dict[str, Setting] = {}
    """All settings of the criterion: ratios, penalty, share of the steps for estimation, scopes."""


class Policy(BaseModel):
    """Which of the trainable layers train in each optimiser step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the policy in the registry, for example `ist`."""
    settings: dict[str, Setting] = {}
    """All settings of the policy."""


class Candidate(BaseModel):
    """Everything that distinguishes one training run of a search from another, seed excepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    insertions: tuple[Insertion, ...]
    """May be empty: then only the head is trained."""
    learning_rate: float
    pruning: Pruning | None = None
    """None keeps the whole backbone."""
    policy: Policy | None = None
    """None trains every layer of the insertions in every step."""

    @cached_property
    def digest(self) -> str:
        """Identity: two candidates with one digest train the same thing."""
        return digest_of(self.model_dump(mode="json", exclude_none=True))

    def treatments(self) -> tuple[tuple[str, str, dict[str, Setting]], ...]:
        """What is done beside the insertions: `pruning` and `policy`, each with its name and settings."""
        found = []
        if self.pruning is not None:
            found.append(("pruning", self.pruning.criterion, self.pruning.settings))
        if self.policy is not None:
            found.append(("policy", self.policy.name, self.policy.settings))
        return tuple(found)

    def layers(self) -> tuple[int, ...]:
        """Every layer that holds something trainable, ascending."""
        return tuple(sorted({layer for insertion in self.insertions for layer in insertion.layers}))
