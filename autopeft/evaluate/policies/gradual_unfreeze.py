"""Gradual unfreezing: the top layer first, and one more from above every so many steps."""

from __future__ import annotations

from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import IntDomain
from autopeft.evaluate.policies.policy import Context, RunningPolicy, TrainingPolicy


class _Running(RunningPolicy):
    def before_step(self, step: int) -> None:
        gates = self.context.gates
        gates.set(gates.layers[-(1 + step // int(self.context.settings["interval"])) :])


class GradualUnfreeze(TrainingPolicy):
    """Howard and Ruder, ACL 2018, section 3.3, who unfreeze one layer per epoch."""

    def start(self, context: Context) -> RunningPolicy:
        """The policy at work."""
        return _Running(context)


POLICY = GradualUnfreeze(
    TreatmentFacts(
        name="gradual-unfreeze",
        title="Gradual unfreezing",
        paper="Howard and Ruder, ACL 2018 (arXiv:1801.06146)",
        summary="Trains the top layer first and one more from above every so many steps.",
        settings={"interval": IntDomain(low=1, high=100_000)},
        defaults={"interval": 20},
    )
)
