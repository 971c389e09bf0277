"""What a run says of memory that it predicted, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autopeft.app.objectives import ELSEWHERE
from autopeft.domain.calibration import prediction_errors
from autopeft.domain.results import RunResults


def memory_json(results: RunResults) -> dict[str, Any]:
    """`refused`, the run's own `errors` (None where no trial has a prediction and a measurement), `predicted_for`."""
    trials = [one.trial for one in results.trials]
    errors, there = prediction_errors(trials), results.record.spec.predict_for
    return {
        "refused": sum(trial.refused for trial in trials),
        "errors": None if errors is None else asdict(errors),
        "predicted_for": None if there is None else {"objective": ELSEWHERE, **there.model_dump(mode="json")},
    }


def memory_text(results: RunResults) -> str:
    """One line: how far predictions lay off, and how many candidates were refused; empty where there is nothing."""
    trials = [one.trial for one in results.trials]
    errors, refused = prediction_errors(trials), sum(trial.refused for trial in trials)
    parts = [f"predicted {errors}"] if errors is not None else []
    parts += [f"{refused} candidate{'s' if refused != 1 else ''} refused before training"] if refused else []
    return "; ".join(parts)


def elsewhere_text(results: RunResults) -> str:
    """One sentence about an objective that is predicted and not measured; empty where there is none."""
    there = results.record.spec.predict_for
    if there is None or all(one.name != ELSEWHERE for one in results.objectives):
        return ""
    return f"{ELSEWHERE} is predicted, not measured: for {there}."
