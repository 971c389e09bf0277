"""Pruning criteria by name: what of the backbone and of the PEFT modules goes after a short estimation."""

from __future__ import annotations

from autopeft.domain.ports import TreatmentRules
from autopeft.evaluate.pruning import criteria

__all__ = ["CRITERIA"]

CRITERIA: dict[str, TreatmentRules] = {criterion.facts.name: criterion for criterion in criteria.ALL}
"""Every criterion that a candidate may name; a candidate without one keeps the whole backbone."""
