"""Share of validation rows whose right choice is the most likely one, per token."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="choice_accuracy",
    direction=Direction.MAXIMIZE,
    unit=Unit.FRACTION,
    summary="Share of validation rows whose right choice is the most likely one, per token.",
    score=metric_score("choice_accuracy"),
    worst=0.0,
)
