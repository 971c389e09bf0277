"""PEFT methods by name: one module per family, each with a tuple `METHODS`."""

from __future__ import annotations

from autopeft.evaluate.methods import lora
from autopeft.evaluate.methods.method import Attached, Calibration, Method, OwnMethod, PeftMethod

__all__ = ["METHODS", "Attached", "Calibration", "Method", "OwnMethod", "PeftMethod"]

_FAMILIES = (lora,)

METHODS: dict[str, Method] = {method.name: method for family in _FAMILIES for method in family.METHODS}
"""Every method that a candidate may name."""
