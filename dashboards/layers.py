"""Which layers of the model the points of the front train."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from autopeft.domain.results import RunResults

from .numbers import setting, text_of
from .style import MUTED, Panel, View, sequence, styled

_SHOWN = 60
_TITLE = 50
"""Characters that fit above a row on a screen of 360 pixels."""


@dataclass(frozen=True)
class LayersRecord:
    """Front points by layers."""

    labels: tuple[str, ...]
    """One per front point: its trial number and its values."""
    titles: tuple[str, ...]
    """The same for a phone, where it stands above its row: the values first, and cut to the width of the screen."""
    layers: tuple[int, ...]
    strength: tuple[tuple[float | None, ...], ...]
    """`[points, layers]`: the largest rank in the layer, or the number of methods in it; None for an untouched one."""
    details: tuple[tuple[str, ...], ...]
    """`[points, layers]`: methods, modules and settings, one per line."""
    ranked: bool
    """Whether every insertion of every point has a rank, so that `strength` holds ranks."""
    left_out: int
    """Front points beyond the ones shown."""


def layers_record(results: RunResults) -> LayersRecord:
    """What each front point puts into each layer; at most 60 points, in the front's order."""
    layers = tuple(layer.index for layer in results.record.layout.layers)
    members = results.front.members[:_SHOWN]
    labels, titles, strength, details = [], [], [], []
    ranks = [one.settings.get("rank") for point in members for one in point.trial.candidate.insertions]
    ranked = bool(ranks) and all(isinstance(rank, int | float) and not isinstance(rank, bool) for rank in ranks)
    for one in members:
        values = zip(results.objectives[:2], (one.values or ())[:2], strict=True)
        numbers = " · ".join(text_of(value, objective.unit) for objective, value in values)
        methods = "" if ranked else " + ".join(dict.fromkeys(part.method for part in one.trial.candidate.insertions))
        labels.append("  ".join(filter(None, (f"#{one.trial.number}", methods, numbers))))
        titles.append(_cut("  ".join(filter(None, (f"#{one.trial.number}", numbers, methods)))))
        found: dict[int, float] = {}
        lines: dict[int, list[str]] = {}
        for insertion in one.trial.candidate.insertions:
            knobs = ", ".join(f"{name} {setting(value)}" for name, value in insertion.settings.items())
            for layer in insertion.layers:
                if ranked:
                    found[layer] = max(found.get(layer, 0.0), float(insertion.settings["rank"]))
                else:
                    found[layer] = found.get(layer, 0.0) + 1
                where = f" in {', '.join(insertion.modules)}" if insertion.modules else ""
                lines.setdefault(layer, []).append(f"{insertion.method}{where}: {knobs}".removesuffix(": "))
        strength.append(tuple(found.get(layer) for layer in layers))
        details.append(tuple("\n".join(lines.get(layer, ["not trained"])) for layer in layers))
    left_out = len(results.front.members) - len(members)
    return LayersRecord(tuple(labels), tuple(titles), layers, tuple(strength), tuple(details), ranked, left_out)


def _cut(text: str) -> str:
    return text if len(text) <= _TITLE else text[: _TITLE - 1].rstrip(" +") + "…"


def layers_figure(record: LayersRecord) -> go.Figure:
    """A heat map, darker for a larger rank or more methods; the number is written into its cell where there is room."""
    present = [value for row in record.strength for value in row if value is not None]
    hover = [[html.escape(text).replace("\n", "<br>") for text in row] for row in record.details]
    labels = [html.escape(label) for label in record.labels]
    figure = go.Figure(
        go.Heatmap(
            x=[str(layer) for layer in record.layers],
            y=labels,
            z=record.strength,
            customdata=hover,
            colorscale=sequence(),
            zmin=0,
            zmax=max(present, default=1.0),
            xgap=3,
            ygap=3,
            showscale=False,
            texttemplate="%{z}" if len(record.layers) <= 32 and max(present, default=1.0) > 1 else None,
            hoverongaps=True,
            hovertemplate="<b>%{y}</b><br>layer %{x}<br>%{customdata}<extra></extra>",
        )
    )
    styled(
        figure,
        120 + 30 * len(labels),
        xaxis_title_text="Layer (0 is nearest to the input)",
        xaxis_type="category",
        yaxis_type="category",
        yaxis_autorange="reversed",
    )
    figure.update_xaxes(showgrid=False, side="bottom", ticks="")
    figure.update_yaxes(showgrid=False, ticks="outside", tickcolor="rgba(0,0,0,0)", ticklen=6)
    return figure


def layers_on_a_phone(record: LayersRecord) -> dict[str, Any]:
    """Changes of the figure: each row's label above it, so that the cells have the whole width."""
    above = [
        {
            "text": html.escape(title),
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": row - 0.5,
            "yanchor": "middle",
            "showarrow": False,
            "font": {"color": MUTED, "size": 11},
        }
        for row, title in enumerate(record.titles)
    ]
    rows = len(record.titles)
    return {
        "layout.height": 96 + 52 * rows,
        "layout.annotations": above,
        "layout.yaxis.showticklabels": False,
        "layout.yaxis.ticks": "",
        "layout.yaxis.autorange": False,
        "layout.yaxis.range": [rows - 0.5, -0.8],
        "data.0.ygap": 24,
    }


def layers_panel(results: RunResults) -> Panel:
    """The panel; without a front or without layers, the sentence that says so."""
    record = layers_record(results)
    caption = "One row per point of the front, one column per layer of the model; an empty cell is an untouched layer."
    if record.ranked:
        caption += " The number is the rank; the stronger the colour, the larger."
    else:
        caption += " The stronger the colour, the more methods act in the layer; the details name them."
    if record.left_out:
        caption += f" {record.left_out} more points of the front are in the table."
    drawable = bool(record.labels and record.layers)
    return Panel(
        name="layers",
        title="Layers of the front",
        caption=caption,
        views=(View("All", layers_figure(record), layers_on_a_phone(record)),) if drawable else (),
        empty="No trial completed, so there is no front to look into.",
        min_width=160 + 24 * len(record.layers),
        narrow_min_width=16 + 12 * len(record.layers),
    )
