"""Most bytes live at once while predicting, base model included."""

from autopeft.domain.objective import Direction, Objective, Unit, or_nan

objective = Objective(
    name="infer_peak_bytes",
    direction=Direction.MINIMIZE,
    unit=Unit.BYTES,
    summary="Most bytes live at once while predicting, base model included.",
    score=lambda measured: or_nan(measured.infer_peak.live_bytes if measured.infer_peak else None),
)
