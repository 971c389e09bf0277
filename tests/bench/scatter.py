"""A picture of predicted against observed numbers, for the benchmarks of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go


def scatter(points: Sequence[tuple[float, float, str]], observed: str, predicted: str, to: Path) -> None:
    """Write `(observed, predicted, name)` as a scatter with the diagonal: HTML, or PNG where kaleido is installed."""
    xs, ys, names = zip(*points, strict=True)
    low, high = min(*xs, *ys), max(*xs, *ys)
    figure = go.Figure()
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": "#999", "dash": "dot"}, name="equal")
    figure.add_scatter(x=xs, y=ys, text=names, mode="markers", name="cases", marker={"size": 7, "opacity": 0.7})
    figure.update_layout(
        xaxis_title=observed, yaxis_title=predicted, template="plotly_white", width=760, height=640, showlegend=False
    )
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    if to.suffix == ".html":
        figure.write_html(to, include_plotlyjs=True)
    else:
        figure.write_image(to)
    print(f"picture: {to}")
