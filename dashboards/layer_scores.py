"""How much each layer mattered in the course of a training, where a policy scored the layers."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go

from autopeft.domain.results import RunResults

from .style import Panel, View, sequence, styled

_SHOWN = 8


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
    """A heat map: steps to the right, layers upwards, darker for more important."""
    figure = go.Figure(
        go.Heatmap(
            x=[str(step) for step in record.steps],
            y=[str(layer) for layer in record.layers],
            z=record.importance,
            colorscale=sequence(),
            colorbar={"title": {"text": "Importance", "side": "right"}, "thickness": 12, "outlinewidth": 0},
            hovertemplate=f"<b>{html.escape(record.label)}</b><br>step %{{x}}<br>layer %{{y}}<br>"
            "importance %{z:.3f}<extra></extra>",
        )
    )
    styled(
        figure,
        160 + 18 * len(record.layers),
        xaxis_title_text="Optimiser steps",
        yaxis_title_text="Layer (0 is nearest to the input)",
        xaxis_type="category",
        yaxis_type="category",
    )
    figure.update_xaxes(showgrid=False, nticks=12)
    figure.update_yaxes(showgrid=False)
    return figure


def layer_scores_panel(results: RunResults) -> Panel | None:
    """The panel, one view per trial; None where no trial has scores."""
    records = layer_scores_record(results)
    if not records:
        return None
    return Panel(
        name="layer-scores",
        title="Importance of layers during training",
        caption="Where a training policy scores layers (IST), one column per scoring and one row per layer; 0 at the "
        "start, higher where damping the layer made the loss worse.",
        views=tuple(View(record.label, layer_scores_figure(record)) for record in records),
        min_width=480,
    )
