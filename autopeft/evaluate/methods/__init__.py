"""PEFT methods by name: one module per family, each with a tuple `METHODS`."""

from __future__ import annotations

from autopeft.evaluate.methods import (
    adalora,
    adaption_prompt,
    bottleneck,
    frozen_bases,
    in_place,
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
    subspaces,
)
from autopeft.evaluate.methods.method import Attached, Calibration, Method, OwnMethod, PeftMethod

__all__ = ["METHODS", "Attached", "Calibration", "Method", "OwnMethod", "PeftMethod"]

_FAMILIES = (
    lora,
    lora_variants,
    lora_data,
    lora_optimisers,
    adalora,
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
