"""Training policies by name: which layers train in each optimiser step."""

from __future__ import annotations

from autopeft.evaluate.policies.policy import TrainingPolicy

__all__ = ["POLICIES", "TrainingPolicy"]

_FAMILIES: tuple[tuple[TrainingPolicy, ...], ...] = ()

POLICIES: dict[str, TrainingPolicy] = {policy.facts.name: policy for family in _FAMILIES for policy in family}
"""Every policy that a candidate may name; a candidate without one trains all its layers."""
