"""Mean loss per token of the validation completions, in nats."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="validation_loss",
    direction=Direction.MINIMIZE,
    unit=Unit.NUMBER,
    summary="Mean loss per token of the validation completions, in nats.",
    score=metric_score("validation_loss"),
    quality=True,
)
