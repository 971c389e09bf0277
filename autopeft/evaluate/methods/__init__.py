"""PEFT methods by name: one module per family, each with a tuple `METHODS`."""

from __future__ import annotations

from autopeft.evaluate.methods import (
    adalora,
    adaption_prompt,
    bottleneck,
    frozen_bases,
    in_place,
    increlora,
    lora,
    lora_data,
    lora_optimisers,
    lora_variants,
    low_rank,
    orthogonal,
    prefix,
    products,
    prompts,
    scaling,
    shards,
    shared_vectors,
    sparse,
    spectral,
    spt,
    subspaces,
    unregistered,
)
from autopeft.evaluate.methods.method import (
    NO_CALIBRATION,
    Attached,
    Calibration,
    Companion,
    Given,
    Method,
    OwnMethod,
    PeftMethod,
)

__all__ = [
    "METHODS",
    "NO_CALIBRATION",
    "UNREGISTERED",
    "UNREGISTERED_VARIANTS",
    "Attached",
    "Calibration",
    "Companion",
    "Given",
    "Method",
    "OwnMethod",
    "PeftMethod",
]

_FAMILIES = (
    lora,
    lora_variants,
    lora_data,
    lora_optimisers,
    adalora,
    increlora,
    spt,
    low_rank,
    products,
    shards,
    frozen_bases,
    shared_vectors,
    subspaces,
    orthogonal,
    spectral,
    sparse,
    scaling,
    bottleneck,
    prefix,
    in_place,
    prompts,
    adaption_prompt,
)

METHODS: dict[str, Method] = {method.name: method for family in _FAMILIES for method in family.METHODS}
"""Every method that a candidate may name."""

_LEFT_OUT = (*_FAMILIES, unregistered)

UNREGISTERED: dict[str, str] = {
    kind: reason for module in _LEFT_OUT for kind, reason in getattr(module, "UNREGISTERED", {}).items()
}
"""Name of each `PeftType` of peft that no method stands for, and why."""

UNREGISTERED_VARIANTS: dict[str, str] = {
    name: reason for module in _LEFT_OUT for name, reason in getattr(module, "UNREGISTERED_VARIANTS", {}).items()
}
"""Ways to start or change a method of peft that no method here stands for, and why."""
