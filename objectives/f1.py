"""F1 on validation: of the second class for two classes, macro average for more."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="f1",
    direction=Direction.MAXIMIZE,
    unit=Unit.FRACTION,
    summary="F1 on validation: of the second class for two classes, macro average for more.",
    score=metric_score("f1"),
    worst=0.0,
)
