"""Size of the saved adapter file, head included."""

from autopeft.domain.objective import Direction, Objective, Unit, or_nan

objective = Objective(
    name="adapter_bytes",
    direction=Direction.MINIMIZE,
    unit=Unit.BYTES,
    summary="Size of the saved adapter file, head included.",
    score=lambda measured: or_nan(measured.adapter_bytes),
)
