"""PEFT methods by name: one module per family, each with a tuple `METHODS`."""

from __future__ import annotations

from autopeft.evaluate.methods import (, orthogonal, scaling, sparse, spectral
    adalora,
    bottleneck,
    frozen_bases,
    in_place,
    lora,
    lora_data,
    lora_optimisers,
    lora_variants,
    low_rank,
    products,
    shards,
    shared_vectors,
    subspaces,
)
from autopeft.evaluate.methods.method import Attached, Calibration, Method, OwnMethod, PeftMethod

__all__ = ["METHODS", "Attached", "Calibration", "Method", "OwnMethod", "PeftMethod"]

_FAMILIES = (lora, lora_data, lora_optimisers, lora_variants, adalora, bottleneck, in_place, orthogonal, spectral, sparse, scaling)

METHODS: dict[str, Method] = {method.name: method for family in _FAMILIES for method in family.METHODS}
"""Every method that a candidate may name."""
