"""Seconds of training, evaluation excluded."""

from autopeft.domain.objective import Direction, Objective, Unit, or_nan

objective = Objective(
    name="train_s",
    direction=Direction.MINIMIZE,
    unit=Unit.SECONDS,
    summary="Seconds of training, evaluation excluded.",
    score=lambda measured: or_nan(measured.train_s),
)
