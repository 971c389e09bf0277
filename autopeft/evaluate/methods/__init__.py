"""PEFT methods by name: one module per family, each with a tuple `METHODS`."""

from __future__ import annotations

from autopeft.evaluate.methods import (
    adalora,
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
)

METHODS: dict[str, Method] = {method.name: method for family in _FAMILIES for method in family.METHODS}
"""Every method that a candidate may name."""
