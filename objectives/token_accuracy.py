"""Share of the validation completions' tokens that are found most likely."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="token_accuracy",
    direction=Direction.MAXIMIZE,
    unit=Unit.FRACTION,
    summary="Share of the validation completions' tokens that are found most likely.",
    score=metric_score("token_accuracy"),
    worst=0.0,
)
