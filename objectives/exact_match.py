"""Share of validation rows to which the right answer is generated."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="exact_match",
    direction=Direction.MAXIMIZE,
    unit=Unit.FRACTION,
    summary="Share of validation rows to which the right answer is generated.",
    score=metric_score("exact_match"),
    worst=0.0,
)
