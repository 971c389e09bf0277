"""Drawing the front: a scatter with a staircase, and a strip below it for what did not fit into memory."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from autopeft.domain.objective import Unit
from autopeft.domain.results import RunResults
from autopeft.domain.trial import TrialStatus

from .front import FrontPoint, FrontRecord, escaped, front_records
from .numbers import Scale, label, scale_of, text_of, titled
from .style import FRONT, LIMIT, MANY_POINTS, MUTED, OTHER, STATUS, SURFACE, TEST, TEXT, Panel, View, sequence, styled

_STRIP = 0.11
"""Share of the height that the strip takes."""
_CROWD = 200
"""Beyond this many infeasible trials their crosses are translucent."""


def front_figure(record: FrontRecord) -> go.Figure:
    """Dominated points grey, the front as blue points on a staircase, the recommended ones named."""
    axes = _Axes(record)
    figure = go.Figure()
    dominated = [point for point in record.points if not point.on_front]
    members = [point for point in record.points if point.on_front]
    if dominated:
        figure.add_trace(_cloud(dominated, axes))
    if record.stopped:
        figure.add_trace(_stopped(record, axes))
    if record.stairs:
        figure.add_trace(_staircase(record, axes))
    if any(point.test is not None for point in members):
        figure.add_traces(_tests(members, axes))
    if members:
        figure.add_trace(_front(record, members, axes))
    if record.infeasible:
        figure.add_traces(_strip(record, axes))
    _lines(figure, record, axes)
    _names(figure, members, axes)
    strip, alone = bool(record.infeasible), not (record.points or record.stopped)
    styled(
        figure,
        240 if alone else 520,
        xaxis=axes.across.layout(titled(label(record.x), axes.x.unit) if record.x else "Trial"),
        yaxis={
            **axes.up.layout(titled(f"{label(record.y)}, validation", axes.y.unit)),
            "domain": [_STRIP + 0.03 if strip else 0, 1],
            "visible": not alone,
        },
        yaxis2={
            "domain": [0, 1 if alone else _STRIP if strip else 0],
            "range": [-1, 1],
            "visible": False,
            "fixedrange": True,
        },
        hovermode="closest",
        showlegend=True,
    )
    figure.update_xaxes(anchor="y2" if strip else "y")
    return figure


class _Range:
    """An axis in its own unit with its visible range."""

    def __init__(self, scale: Scale, shown: Sequence[float], below: float, above: float) -> None:
        self.log = scale.log
        values = [value * scale.factor for value in shown] or [0.0, 1.0]
        ends = [math.log10(value) for value in values if value > 0] if self.log else values
        low, high = min(ends), max(ends)
        width = (high - low) or (0.3 if self.log else max(abs(high) * 0.2, 1e-9))
        self.low, self.high = low - below * width, high + above * width

    def layout(self, title: str) -> dict[str, Any]:
        return {
            "title": {"text": html.escape(title)},
            "range": [self.low, self.high],
            "type": "log" if self.log else "linear",
            "nticks": 8,
        }

    def share(self, value: float) -> float:
        """Where a data value lies in the visible range, 0 at its low end, 1 at its high end."""
        return (self.place(value) - self.low) / (self.high - self.low)

    def value(self, share: float) -> float:
        """The data value at this share of the visible range."""
        at = self.low + share * (self.high - self.low)
        return float(10**at if self.log else at)

    def place(self, value: float) -> float:
        """A data value as Plotly wants it in annotations: its logarithm on a log axis."""
        return math.log10(value) if self.log else value


class _Axes:
    """Scales and visible ranges of both axes. An axis is not stretched for an infeasible trial far off it."""

    def __init__(self, record: FrontRecord) -> None:
        across = [point.x for point in record.points] + ([record.limit] if record.limit is not None else [])
        near = 1.5 * max(across) if across else math.inf
        across += [one.x for one in record.infeasible if one.x <= near] + [one.x for one in record.stopped]
        up = [point.y for point in record.points] + [one.y for one in record.stopped]
        if record.guess is not None and up and min(up) - record.guess <= 1.2 * (max(up) - min(up)):
            up.append(record.guess)
        self.x = scale_of(record.x.unit, across) if record.x else Scale(1.0, "")
        self.y = scale_of(record.y.unit, up)
        self.across = _Range(self.x, across, 0.10, 0.06)
        self.up = _Range(self.y, up, 0.08, 0.14)

    def xs(self, values: Iterable[float]) -> NDArray[np.float64]:
        return self.x.factor * np.fromiter(values, dtype=float)

    def ys(self, values: Iterable[float]) -> NDArray[np.float64]:
        return self.y.factor * np.fromiter(values, dtype=float)


def _cloud(points: Sequence[FrontPoint], axes: _Axes) -> go.Scatter | go.Scattergl:
    many = len(points) > MANY_POINTS
    kind = go.Scattergl if many else go.Scatter
    return kind(
        x=axes.xs(point.x for point in points),
        y=axes.ys(point.y for point in points),
        customdata=np.array([point.number for point in points]),
        hovertext=None if many else [escaped(point.hover) for point in points],
        hovertemplate="<b>Trial %{customdata}</b><br>%{y:.4~g} at %{x:.4~g}<extra></extra>"
        if many
        else "%{hovertext}<extra></extra>",
        mode="markers",
        name="Dominated",
        marker={"size": 5 if many else 8, "color": OTHER, "opacity": 0.45 if many else 0.75},
    )


def _stopped(record: FrontRecord, axes: _Axes) -> go.Scatter | go.Scattergl:
    """Trials that were stopped early, hollow, at the quality of their last rung: never part of the front."""
    many, colour = len(record.stopped) > MANY_POINTS, STATUS[TrialStatus.STOPPED_EARLY]
    kind = go.Scattergl if many else go.Scatter
    return kind(
        x=axes.xs(one.x for one in record.stopped),
        y=axes.ys(one.y for one in record.stopped),
        customdata=np.array([one.number for one in record.stopped]),
        hovertext=None if many else [escaped(one.hover) for one in record.stopped],
        hovertemplate="<b>Trial %{customdata}</b><br>%{y:.4~g} at %{x:.4~g}<extra></extra>"
        if many
        else "%{hovertext}<extra></extra>",
        mode="markers",
        name="Stopped early",
        marker={"symbol": "square-open", "size": 7, "color": colour, "line": {"color": colour, "width": 1.5}},
    )


def _staircase(record: FrontRecord, axes: _Axes) -> go.Scatter:
    worst_x = axes.across.value(1.0 if record.x is None or record.x.sign > 0 else 0.0)
    worst_y = axes.up.value(0.0 if record.y.sign < 0 else 1.0)
    across, up = axes.xs(x for x, _ in record.stairs), axes.ys(y for _, y in record.stairs)
    return go.Scatter(
        x=[across[0], *across, worst_x],
        y=[worst_y, *up, up[-1]],
        mode="lines",
        line={"shape": "hv", "color": FRONT, "width": 2},
        opacity=0.55,
        hoverinfo="skip",
        showlegend=False,
    )


def _front(record: FrontRecord, members: Sequence[FrontPoint], axes: _Axes) -> go.Scatter:
    marker: dict[str, Any] = {
        "size": [15 if point.picks else 11 for point in members],
        "color": FRONT,
        "line": {"color": [TEXT if point.picks else SURFACE for point in members], "width": 2},
    }
    third = record.third
    if third is not None:
        values = [point.third or 0.0 for point in members]
        scale = scale_of(third.unit, values)
        marker |= {
            "color": [scale.factor * value for value in values],
            "colorscale": sequence(),
            "colorbar": {
                "title": {"text": html.escape(titled(label(third), scale.unit)), "side": "right"},
                "thickness": 10,
                "outlinewidth": 0,
                "tickfont": {"color": MUTED},
            },
        }
    return go.Scatter(
        x=axes.xs(point.x for point in members),
        y=axes.ys(point.y for point in members),
        customdata=[point.number for point in members],
        hovertext=[escaped(point.hover) for point in members],
        hovertemplate="%{hovertext}<extra></extra>",
        mode="markers",
        name="Front",
        marker=marker,
    )


def _tests(members: Sequence[FrontPoint], axes: _Axes) -> list[go.Scatter]:
    scored = [(point, point.test) for point in members if point.test is not None]
    bars: list[tuple[float | None, float | None]] = []
    for point, test in scored:
        bars += [(point.x, point.y), (point.x, test), (None, None)]
    group = {"legendgroup": "test", "name": "Test score", "visible": "legendonly"}
    return [
        go.Scatter(
            x=[None if x is None else axes.x.factor * x for x, _ in bars],
            y=[None if y is None else axes.y.factor * y for _, y in bars],
            mode="lines",
            line={"color": TEST, "width": 1},
            hoverinfo="skip",
            showlegend=False,
            **group,
        ),
        go.Scatter(
            x=axes.xs(point.x for point, _ in scored),
            y=axes.ys(test for _, test in scored),
            customdata=[point.number for point, _ in scored],
            hovertext=[escaped(point.hover) for point, _ in scored],
            hovertemplate="%{hovertext}<extra>test</extra>",
            mode="markers",
            marker={"symbol": "diamond-open", "size": 9, "color": TEST, "line": {"width": 2}},
            **group,
        ),
    ]


def _strip(record: FrontRecord, axes: _Axes) -> list[go.Scatter]:
    """Infeasible trials below the axis: crosses where they belong, arrows at the edge for those beyond it."""
    edge = axes.across.value(0.99)
    inside = [one for one in record.infeasible if one.x * axes.x.factor <= edge]
    beyond = [one for one in record.infeasible if one.x * axes.x.factor > edge]
    made: list[go.Scatter] = []
    for group, symbol in ((inside, "x-thin-open"), (beyond, "triangle-right")):
        if group:
            made.append(
                go.Scatter(
                    x=[min(one.x * axes.x.factor, edge) for one in group],
                    y=[((one.number * 7) % 11 - 5) / 8 for one in group],
                    yaxis="y2",
                    customdata=[one.number for one in group],
                    hovertext=[escaped(one.hover if one.known else one.hover + "\nneeded: unknown") for one in group],
                    hovertemplate="%{hovertext}<extra></extra>",
                    mode="markers",
                    name="Infeasible",
                    cliponaxis=False,
                    legendgroup="infeasible",
                    showlegend=not made,
                    opacity=0.5 if len(record.infeasible) > _CROWD else 1,
                    marker={
                        "symbol": symbol,
                        "size": 8,
                        "color": STATUS[TrialStatus.INFEASIBLE],
                        "line": {"color": STATUS[TrialStatus.INFEASIBLE], "width": 2},
                    },
                )
            )
    return made


def _lines(figure: go.Figure, record: FrontRecord, axes: _Axes) -> None:
    if record.limit is not None:
        at = record.limit * axes.x.factor
        figure.add_shape(
            type="line", x0=at, x1=at, y0=0, y1=1, yref="paper", line={"color": LIMIT, "width": 1.5, "dash": "dash"}
        )
        figure.add_annotation(
            x=axes.across.place(at),
            y=0.5,
            yref="paper",
            textangle=-90,
            text=f"limit {text_of(record.limit, Unit.BYTES)}",
            showarrow=False,
            xanchor="left",
            yanchor="middle",
            xshift=2 if axes.across.share(at) < 0.9 else -20,
            font={"color": LIMIT, "size": 12},
        )
    if record.infeasible:
        figure.add_annotation(
            x=0,
            xref="paper",
            y=_STRIP if record.points or record.stopped else 1,
            yref="paper",
            text="did not fit" if record.limit is not None else "infeasible",
            showarrow=False,
            xanchor="left",
            yanchor="top",
            font={"color": MUTED, "size": 12},
        )
    if record.guess is None or not record.points:
        return
    at, text = record.guess * axes.y.factor, f"majority class {text_of(record.guess, record.y.unit)}"
    shown = at >= axes.up.low
    if shown:
        figure.add_shape(
            type="line", x0=0, x1=1, xref="paper", y0=at, y1=at, line={"color": MUTED, "width": 1.5, "dash": "dot"}
        )
    figure.add_annotation(
        x=1,
        xref="paper",
        y=at if shown else axes.up.low,
        text=text if shown else f"↓ {text}",
        showarrow=False,
        xanchor="right",
        yanchor="bottom",
        font={"color": MUTED, "size": 12},
    )


def _names(figure: go.Figure, members: Sequence[FrontPoint], axes: _Axes) -> None:
    """Names of the recommended points on the empty side of the front; the knee's beside it, to keep clear of others.

    A name that would cover another one, on a plot as small as a phone's, moves up.
    """
    wide, tall = 270.0, 330.0
    taken: list[tuple[float, float, float]] = []
    for point in sorted(members, key=lambda member: member.y):
        if not point.picks:
            continue
        across, up = point.x * axes.x.factor, point.y * axes.y.factor
        text = " · ".join(pick.replace("-", " ") for pick in point.picks)
        left, beside = axes.across.share(across) < 0.3, point.picks == ("knee",)
        shift = 20 if left or not beside else 2
        start = wide * axes.across.share(across) - (6 if left else 7 * len(text))
        end, height = start + 7 * len(text), tall * axes.up.share(up) + shift
        while any(start < other_end and other < end and abs(height - at) < 17 for other, other_end, at in taken):
            height, shift = height + 17, shift + 17
        taken.append((start, end, height))
        figure.add_annotation(
            x=axes.across.place(across),
            y=axes.up.place(up),
            text=text,
            showarrow=False,
            xanchor="left" if left else "right",
            xshift=-6 if left else -10 if beside else 6,
            yshift=shift,
            font={"size": 12, "color": TEXT},
        )


def front_panel(results: RunResults) -> Panel:
    """The panel with a view per pair of objectives."""
    records = front_records(results)
    drawn = [record for record in records if record.points or record.infeasible or record.stopped]
    quality = records[0].y
    caption = (
        "Each point is one fine-tuning run. No other run is better than a blue point in every objective. "
        "Click a point to find its trial in the table."
    )
    if records[0].stopped:
        caption += " Hollow squares were stopped early and stand where their last rung saw them; they are no results."
    if records[0].repeated:
        caption += " Some were trained again with another seed: quality is the posterior mean of each candidate."
    unplaced = records[0].unplaced
    if unplaced:
        caption += f" {unplaced} infeasible {'trial has' if unplaced == 1 else 'trials have'} no number to draw."
    views = (
        View(f"{label(quality)} against {label(record.x).lower() if record.x else 'trial'}", front_figure(record))
        for record in drawn
    )
    return Panel(
        name="front",
        title="Front",
        caption=caption,
        views=tuple(views),
        empty="No trial completed, so there is nothing to draw yet.",
    )
