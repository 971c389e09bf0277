"""LISA: some random layers train for a period, then others; what lies outside the layers always trains."""

from __future__ import annotations

from autopeft.domain.method import TreatmentFacts
from autopeft.domain.space import IntDomain
from autopeft.evaluate.policies.draws import stream, subset
from autopeft.evaluate.policies.policy import Context, RunningPolicy, TrainingPolicy

_DRAW = 2


class _Running(RunningPolicy):
    def before_step(self, step: int) -> None:
        gates, settings = self.context.gates, self.context.settings
        period = step // int(settings["interval"])
        count = min(int(settings["layers"]), len(gates.layers))
        gates.set(subset(stream(self.context.seed, period, _DRAW), gates.layers, count))
        for layer in gates.layers:
            for parameter in gates.parameters(layer):
                if not parameter.requires_grad:
                    # The moments of a layer that is frozen again would be most of the memory that freezing saves.
                    self.context.optimizer.state.pop(parameter, None)


class Lisa(TrainingPolicy):
    """Layers are drawn uniformly, as in the released code; embeddings train where the method trains them."""

    def start(self, context: Context) -> RunningPolicy:
        """The policy at work."""
        return _Running(context)


POLICY = Lisa(
    TreatmentFacts(
        name="lisa",
        title="LISA",
        paper="Pan et al., NeurIPS 2024 (arXiv:2403.17919)",
        summary="Trains a few random layers at a time, draws others every so many steps, and forgets the optimiser "
        "state of those that it freezes.",
        settings={"layers": IntDomain(low=1, high=1024), "interval": IntDomain(low=1, high=100_000)},
        defaults={"layers": 2, "interval": 20},
    )
)
