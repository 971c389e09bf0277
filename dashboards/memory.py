"""Predicted against measured training memory: how far the predictions of this run can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from autopeft.domain.calibration import PredictionErrors, prediction_errors
from autopeft.domain.objective import Unit
from autopeft.domain.results import RunResults
from autopeft.domain.trial import Trial

from .numbers import scale_of, text_of, titled
from .style import FRONT, LIMIT, MUTED, OTHER, Panel, View, styled


@dataclass(frozen=True)
class Foretold:
    """A trial with both numbers, in bytes."""

    number: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class MemoryRecord:
    """What was predicted and what came of it."""

    trained: tuple[Foretold, ...]
    """Trials that measured their training peak to the end."""
    broken_off: tuple[Foretold, ...]
    """Those that went over the limit or ran out of memory; measured is what they had reached."""
    refused: int
    """Candidates that never trained, because they were predicted not to fit."""
    limit: float | None
    """`max_memory` in bytes."""
    errors: PredictionErrors


def memory_record(results: RunResults) -> MemoryRecord | None:
    """Every trial with a prediction and a measurement; None where no trial has both."""
    trials = [one.trial for one in results.trials]
    errors = prediction_errors(trials)
    if errors is None:
        return None
    limit = results.record.spec.max_memory
    return MemoryRecord(
        trained=_both(trials, whole=True),
        broken_off=_both(trials, whole=False),
        refused=sum(trial.refused for trial in trials),
        limit=None if limit is None else float(limit),
        errors=errors,
    )


def _both(trials: Sequence[Trial], whole: bool) -> tuple[Foretold, ...]:
    found = []
    for trial in trials:
        measured = trial.measurements
        if measured is None or measured.foretold_peak is None or measured.train_peak is None:
            continue
        if (measured.steps == measured.planned_steps) is whole:
            foretold, peak = measured.foretold_peak.live_bytes, measured.train_peak.live_bytes
            found.append(Foretold(trial.number, float(foretold), float(peak)))
    return tuple(found)


def memory_figure(record: MemoryRecord) -> go.Figure:
    """Measured to the right, predicted upwards, and the line on which both are equal."""
    known = [*record.trained, *record.broken_off]
    values = [value for one in known for value in (one.predicted, one.measured)]
    scale = scale_of(Unit.BYTES, [*values, *([record.limit] if record.limit is not None else [])])
    ends = [scale.factor * min(values), scale.factor * max(values)]
    figure = go.Figure(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": MUTED, "width": 1, "dash": "dot"},
            hoverinfo="skip",
            name="predicted = measured",
        )
    )
    groups = (("trained", record.trained, FRONT, "circle"), ("broken off", record.broken_off, OTHER, "x"))
    for name, points, colour, symbol in groups:
        if points:
            figure.add_trace(
                go.Scatter(
                    x=scale.factor * np.array([one.measured for one in points]),
                    y=scale.factor * np.array([one.predicted for one in points]),
                    customdata=np.array([one.number for one in points]),
                    mode="markers",
                    marker={"color": colour, "symbol": symbol, "size": 8},
                    text=[
                        f"predicted {text_of(one.predicted, Unit.BYTES)}<br>"
                        f"measured {text_of(one.measured, Unit.BYTES)}<br>{one.predicted / one.measured - 1:+.2%}"
                        for one in points
                    ],
                    hovertemplate="<b>Trial %{customdata}</b><br>%{text}<extra></extra>",
                    name=name,
                )
            )
    if record.limit is not None:
        figure.add_hline(y=scale.factor * record.limit, line={"color": LIMIT, "width": 1, "dash": "dash"})
    kind = "log" if scale.log else "linear"
    return styled(
        figure,
        340,
        xaxis={"title": {"text": titled("Measured training peak", scale.unit)}, "type": kind},
        yaxis={"title": {"text": titled("Predicted before training", scale.unit)}, "type": kind},
    )


def memory_panel(results: RunResults) -> Panel | None:
    """The panel; None where no trial has a prediction and a measurement."""
    record = memory_record(results)
    if record is None:
        return None
    refused = f" {record.refused} candidates were predicted not to fit and never trained." if record.refused else ""
    return Panel(
        name="memory",
        title="Predicted memory",
        caption=f"Training memory as predicted before each trial, uncorrected, and as measured in it: {record.errors}."
        + refused,
        views=(View("All", memory_figure(record)),),
    )
