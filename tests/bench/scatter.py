"""A picture of predicted against observed numbers, for the benchmarks of this folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go

_SIDE, _MARGIN = 520, 56


def scatter(points: Sequence[tuple[float, float, str]], observed: str, predicted: str, to: Path) -> None:
    """Write `(observed, predicted, name)` as a scatter with the diagonal: as HTML with names that show themselves under
    the pointer, as a small SVG, or in what else kaleido writes where that is installed.
    """
    if to.suffix == ".svg":
        to.write_text(_svg(points, observed, predicted), encoding="utf-8")
        print(f"picture: {to}")
        return
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


def _svg(points: Sequence[tuple[float, float, str]], observed: str, predicted: str) -> str:
    numbers = [number for x, y, _ in points for number in (x, y)]
    room = 0.05 * (max(numbers) - min(numbers)) or 1.0
    low, high = min(numbers) - room, max(numbers) + room

    def at(x: float, y: float) -> tuple[float, float]:
        scale = (_SIDE - 2 * _MARGIN) / (high - low)
        return _MARGIN + (x - low) * scale, _SIDE - _MARGIN - (y - low) * scale

    start, end = at(low, low), at(high, high)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE} {_SIDE}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_SIDE}" height="{_SIDE}" fill="#fff"/>',
    ]
    for value in _ticks(low, high):
        (x, bottom), (left, y) = at(value, low), at(low, value)
        parts += [
            f'<path d="M{x:.1f} {bottom:.1f}V{end[1]:.1f}M{left:.1f} {y:.1f}H{end[0]:.1f}" stroke="#e5e5e5"/>',
            f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{value:g}</text>',
            f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    parts.append(
        f'<path d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}" stroke="#999" stroke-dasharray="3 3"/>'
    )
    for one, other, name in points:
        x, y = at(one, other)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#2a6f97" fill-opacity=".6">'
            f"<title>{escape(name)}: {one:.4g}, {other:.4g}</title></circle>"
        )
    middle = _SIDE / 2
    parts += [
        f'<text x="{middle}" y="{_SIDE - 12}" text-anchor="middle">{escape(observed)}</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(predicted)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between both, about five."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
