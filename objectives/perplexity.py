"""Perplexity of the validation completions: the exponential of their mean loss per token."""

from autopeft.domain.objective import Direction, Objective, Unit, metric_score

objective = Objective(
    name="perplexity",
    direction=Direction.MINIMIZE,
    unit=Unit.NUMBER,
    summary="Perplexity of the validation completions: the exponential of their mean loss per token.",
    score=metric_score("perplexity"),
    quality=True,
)
