"""Spearman rank correlation on validation."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="spearman",
    direction=Direction.MAXIMIZE,
    unit=Unit.CORRELATION,
    summary="Spearman rank correlation on validation.",
    score=metric_score("spearman"),
    worst=0.0,
)
