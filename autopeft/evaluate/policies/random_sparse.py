"""Random sparse training: a fresh random part of the layers in every step; the control of IST."""

from __future__ import annotations

from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import FloatDomain
from autopeft.evaluate.policies.draws import share, stream, subset
from autopeft.evaluate.policies.policy import Context, RunningPolicy, TrainingPolicy

_DRAW = 1


class _Running(RunningPolicy):
    def before_step(self, step: int) -> None:
        gates = self.context.gates
        count = share(float(self.context.settings["trained"]), len(gates.layers))
        gates.set(subset(stream(self.context.seed, step, _DRAW), gates.layers, count))


class RandomSparse(TrainingPolicy):
    """Every layer is as likely as every other in every step."""

    def start(self, context: Context) -> RunningPolicy:
        """The policy at work."""
        return _Running(context)


POLICY = RandomSparse(
    TreatmentFacts(
        name="random-sparse",
        title="RST",
        paper="Yao et al., Findings of EMNLP 2024, as a control of IST",
        summary="Trains a fresh random part of the layers in every step.",
        settings={"trained": FloatDomain(low=0.01, high=1.0)},
        defaults={"trained": 0.25},
    )
)
