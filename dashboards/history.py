"""How much of the objective space the front covers, over trials and over time."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from autopeft.domain.objective import Unit
from autopeft.domain.results import RunResults

from .numbers import Scale, scale_of, titled
from .style import FRONT, Panel, View, styled

_LONGEST = 2000
"""Steps drawn at most; between them nothing changed, or too little to see."""


@dataclass(frozen=True)
class HistoryRecord:
    """Hypervolume after each ended trial at which it changed, and at both ends."""

    trials: tuple[int, ...]
    seconds: tuple[float, ...]
    hypervolume: tuple[float, ...]


def history_record(results: RunResults) -> HistoryRecord:
    """The steps of the hypervolume; empty where no trial completed."""
    points = results.hypervolume_history()
    last = len(points) - 1
    kept = [
        point
        for index, point in enumerate(points)
        if last < _LONGEST or index in (0, last) or point.hypervolume != points[index - 1].hypervolume
    ]
    return HistoryRecord(
        trials=tuple(point.trials for point in kept),
        seconds=tuple(point.seconds for point in kept),
        hypervolume=tuple(point.hypervolume for point in kept),
    )


def history_figure(record: HistoryRecord, over: str) -> go.Figure:
    """A step line over `trials` or over `seconds`."""
    scale = scale_of(Unit.SECONDS, record.seconds) if over == "seconds" else Scale(1.0, "")
    across = [scale.factor * value for value in getattr(record, over)]
    name = "Time since the start" if over == "seconds" else "Trials ended"
    unit = f" {scale.unit}" if scale.unit else " trials"
    figure = go.Figure(
        go.Scatter(
            x=across,
            y=record.hypervolume,
            mode="lines+markers" if len(across) <= 100 else "lines",
            line={"shape": "hv", "color": FRONT, "width": 2},
            marker={"size": 5, "color": FRONT},
            fill="tozeroy",
            fillcolor="rgba(0,114,178,0.10)",
            hovertemplate="after %{x:.4~g}" + unit + "<br>hypervolume %{y:.4f}<extra></extra>",
            showlegend=False,
        )
    )
    top = max(record.hypervolume, default=1.0)
    return styled(
        figure,
        320,
        xaxis_title_text=titled(name, scale.unit),
        xaxis_rangemode="tozero",
        yaxis_title_text="Hypervolume",
        yaxis_range=[0, 1.08 * top if top > 0 else 1],
    )


def history_panel(results: RunResults) -> Panel:
    """The panel with a view per axis."""
    record = history_record(results)
    return Panel(
        name="history",
        title="Progress",
        caption="Share of the objective space that the front dominates. A line that has gone flat says that "
        "more trials found nothing better.",
        views=tuple(
            View(label, history_figure(record, over))
            for label, over in (("Over trials", "trials"), ("Over time", "seconds"))
            if record.trials
        ),
        empty="The first complete trial starts this line.",
    )
