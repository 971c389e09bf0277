"""Training of the top layers only: the plainest way to a short backward pass."""

from __future__ import annotations

from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import IntDomain
from autopeft.evaluate.policies.policy import Context, RunningPolicy, TrainingPolicy


class _Running(RunningPolicy):
    def before_step(self, step: int) -> None:
        gates = self.context.gates
        gates.set(gates.layers[-int(self.context.settings["layers"]) :])


class TopLayers(TrainingPolicy):
    """The same layers in every step; those below keep what they were initialised with."""

    def start(self, context: Context) -> RunningPolicy:
        """The policy at work."""
        return _Running(context)


POLICY = TopLayers(
    TreatmentFacts(
        name="top-layers",
        title="Top layers",
        paper="Lee et al. 2019 (arXiv:1911.03090)",
        summary="Trains the highest of the layers that hold something trainable, and no others.",
        settings={"layers": IntDomain(low=1, high=1024)},
        defaults={"layers": 4},
    )
)
