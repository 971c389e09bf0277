"""Share of validation rows whose label is right."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="accuracy",
    direction=Direction.MAXIMIZE,
    unit=Unit.FRACTION,
    summary="Share of validation rows whose label is right.",
    score=metric_score("accuracy"),
    worst=0.0,
)
