"""Matthews correlation on validation."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="matthews",
    direction=Direction.MAXIMIZE,
    unit=Unit.CORRELATION,
    summary="Matthews correlation on validation.",
    score=metric_score("matthews"),
    worst=0.0,
)
