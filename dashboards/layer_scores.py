"""How much each layer mattered in the course of a training, where a policy scored the layers."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from autopeft.domain.results import RunResults

from .style import FRONT, GRID, LIMIT, MUTED, Panel, View, styled

_SHOWN = 8
_WITH_GAPS = 60
"""With more columns than this, gaps between them would take much of the map."""
_NARROW = {
    "data.0.colorbar.orientation": "h",
    "data.0.colorbar.title.side": "top",
    "data.0.colorbar.x": 0.5,
    "data.0.colorbar.y": 1.02,
    "data.0.colorbar.yanchor": "bottom",
    "data.0.colorbar.ypad": 0,
    "layout.xaxis.nticks": 6,
}
"""On a phone the scale of the colours lies above the map, which then has the whole width."""


@dataclass(frozen=True)
class LayerScores:
    """The scores of one trial."""

    trial: int
    label: str
    steps: tuple[int, ...]
    """Optimiser steps done when the scores were taken, ascending."""
    layers: tuple[int, ...]
    importance: tuple[tuple[float, ...], ...]
    """`[layers, steps]`, higher is more important."""


def layer_scores_record(results: RunResults) -> tuple[LayerScores, ...]:
    """The trials with scores, those of the front first and in its order, then by number; at most 8."""
    front = [one.trial.number for one in results.front.members]
    place = {number: index for index, number in enumerate(front)}
    found = []
    for scored in sorted(results.trials, key=lambda one: (place.get(one.trial.number, len(place)), one.trial.number)):
        trial, measured = scored.trial, scored.trial.measurements
        if measured is None or not measured.layer_scores:
            continue
        policy = trial.candidate.policy
        label = f"#{trial.number}" + (f" {policy.name}" if policy else "")
        found.append(
            LayerScores(
                trial=trial.number,
                label=label + (" (front)" if trial.number in place else ""),
                steps=tuple(step for step, _ in measured.layer_scores),
                layers=measured.scored_layers,
                importance=tuple(zip(*(scores for _, scores in measured.layer_scores), strict=True)),
            )
        )
    return tuple(found[:_SHOWN])


def layer_scores_figure(record: LayerScores) -> go.Figure:
    """A heat map: steps to the right, layers upwards, in two colours for more and less important than at the start."""
    largest = max((abs(value) for row in record.importance for value in row), default=0.0) or 1.0
    figure = go.Figure(
        go.Heatmap(
            x=[str(step) for step in record.steps],
            y=[str(layer) for layer in record.layers],
            z=record.importance,
            zmin=-largest,
            zmax=largest,
            colorscale=[(0.0, LIMIT), (0.5, GRID), (1.0, FRONT)],
            xgap=1 if len(record.steps) <= _WITH_GAPS else 0,
            ygap=1,
            colorbar={
                "title": {"text": "Importance", "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "nticks": 5,
                "tickfont": {"color": MUTED},
            },
            hovertemplate=f"<b>{html.escape(record.label)}</b><br>step %{{x}}<br>layer %{{y}}<br>"
            "importance %{z:.3f}<extra></extra>",
        )
    )
    styled(
        figure,
        160 + 18 * len(record.layers),
        xaxis_title_text="Optimiser steps",
        yaxis_title_text="Layer",
        xaxis_type="category",
        yaxis_type="category",
    )
    figure.update_xaxes(showgrid=False, nticks=12)
    figure.update_yaxes(showgrid=False)
    return figure


def _narrow(record: LayerScores) -> dict[str, Any]:
    return {**_NARROW, "layout.height": 190 + 18 * len(record.layers)}


def layer_scores_panel(results: RunResults) -> Panel | None:
    """The panel, one view per trial; None where no trial has scores."""
    records = layer_scores_record(results)
    if not records:
        return None
    alone = f" Trial {records[0].label}." if len(records) == 1 else ""
    return Panel(
        name="layer-scores",
        title="Importance of layers during training",
        caption="Where a training policy scores layers (IST): one column per scoring, one row per layer, of which 0 is "
        "nearest to the input. 0 at the start; higher where damping the layer made the loss worse." + alone,
        views=tuple(View(record.label, layer_scores_figure(record), _narrow(record)) for record in records),
        min_width=480,
        narrow_min_width=280,
    )
