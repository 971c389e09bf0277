"""Training policies by name: which layers train in each optimiser step."""

from __future__ import annotations

from autopeft.evaluate.policies import dropbp, gradual_unfreeze, ist, lisa, random_sparse, top_layers
from autopeft.evaluate.policies.policy import Context, RunningPolicy, TrainingPolicy

__all__ = ["POLICIES", "Context", "RunningPolicy", "TrainingPolicy"]

_MODULES = (ist, random_sparse, lisa, top_layers, gradual_unfreeze, dropbp)

POLICIES: dict[str, TrainingPolicy] = {module.POLICY.name: module.POLICY for module in _MODULES}
"""Every policy that a candidate may name; a candidate without one trains all its layers."""
