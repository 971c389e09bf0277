"""Most bytes live at once while training, base model included."""

from autopeft.domain.objective import Direction, Objective, Unit, or_nan

objective = Objective(
    name="train_peak_bytes",
    direction=Direction.MINIMIZE,
    unit=Unit.BYTES,
    summary="Most bytes live at once while training, base model included.",
    score=lambda measured: or_nan(measured.train_peak.live_bytes if measured.train_peak else None),
)
