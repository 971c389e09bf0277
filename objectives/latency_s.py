"""Median seconds to predict one validation row, in batches."""

from autopeft.domain.objective import Direction, Objective, Unit, or_nan

objective = Objective(
    name="latency_s",
    direction=Direction.MINIMIZE,
    unit=Unit.SECONDS,
    summary="Median seconds to predict one validation row, in batches.",
    score=lambda measured: or_nan(measured.latency_s),
)
