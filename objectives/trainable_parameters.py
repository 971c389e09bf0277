"""Trainable parameters as found in the live model, head included."""

from autopeft.domain.objective import Direction, Objective, Unit, or_nan

objective = Objective(
    name="trainable_parameters",
    direction=Direction.MINIMIZE,
    unit=Unit.COUNT,
    summary="Trainable parameters as found in the live model, head included.",
    score=lambda measured: or_nan(measured.trainable_parameters),
)
