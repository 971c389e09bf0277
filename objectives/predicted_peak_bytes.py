"""The training peak predicted for the model and the size that the spec's `predict_for` names."""

from autopeft.domain.objective import Direction, Objective, Unit, or_nan

objective = Objective(
    name="predicted_peak_bytes",
    direction=Direction.MINIMIZE,
    unit=Unit.BYTES,
    summary="Training peak on the model and at the size that predict_for names: predicted, never measured.",
    score=lambda measured: or_nan(measured.elsewhere_peak.live_bytes if measured.elsewhere_peak else None),
)
