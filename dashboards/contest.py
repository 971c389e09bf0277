"""How ways to search did on a recorded table: hypervolume over simulated seconds, and a table."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from string import Template

import plotly.graph_objects as go

from autopeft.domain.objective import Unit
from autopeft.domain.replayed import MARKS, Band, Contest

from .numbers import scale_of, titled
from .style import TEXT as INK
from .style import styled

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8d97a7", "#a0522d")
_TIMES = 120
_PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<style>body{font:15px system-ui,sans-serif;color:$ink;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}</style></head>
<body><h1>$title</h1><p>$caption</p>$figure<table>$table</table></body></html>
"""
)


@dataclass(frozen=True)
class ContestRecord:
    """What is drawn."""

    names: tuple[str, ...]
    times: tuple[float, ...]
    """Simulated seconds."""
    curves: tuple[tuple[Band, ...], ...]
    """Per name, the mean share of the hypervolume at each time."""
    rows: tuple[tuple[str, ...], ...]
    """Of the table, the head first."""


def contest_record(contest: Contest) -> ContestRecord:
    """Curves on a common grid, evenly spread over the logarithm of time, and the table's rows."""
    moments = [moment for replays in contest.replays.values() for one in replays for moment in one.moments]
    names = tuple(contest.replays)
    ends = [moment.seconds for moment in moments if moment.seconds > 0]
    if not ends:
        return ContestRecord(names, (), tuple(() for _ in names), (_HEAD,))
    low, high = min(ends), max(ends)
    times = tuple(low * (high / low) ** (index / (_TIMES - 1)) for index in range(_TIMES))
    rows = [
        (
            name,
            *(_seconds(contest.seconds_to(name, mark)) for mark in MARKS),
            _number(contest.trials_to(name, 0.95)),
            _number(contest.samples_to(name, 0.95)),
            f"{contest.stopped_share(name):.0%}",
        )
        for name in names
    ]
    return ContestRecord(names, times, tuple(contest.curve(name, times) for name in names), (_HEAD, *rows))


_HEAD = ("search", *(f"s to {mark:.0%}" for mark in MARKS), "trials to 95%", "samples to 95%", "stopped")


def contest_figure(record: ContestRecord) -> go.Figure:
    """A line per way to search, with its bootstrap band."""
    scale = scale_of(Unit.SECONDS, record.times)
    figure = go.Figure()
    across = [scale.factor * time for time in record.times]
    for index, (name, curve) in enumerate(zip(record.names, record.curves, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        figure.add_scatter(
            x=[*across, *reversed(across)],
            y=[*(band.high for band in curve), *(band.low for band in reversed(curve))],
            fill="toself",
            fillcolor=colour,
            opacity=0.15,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
        figure.add_scatter(
            x=across,
            y=[band.value for band in curve],
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2, "shape": "hv", "dash": "dash" if " + " in name else "solid"},
            hovertemplate="%{y:.3f}",
        )
    return styled(
        figure,
        480,
        xaxis_type="log",
        xaxis_title_text=titled("Simulated time", scale.unit),
        yaxis_title_text="Share of the table's hypervolume",
        yaxis_range=[0, 1.02],
        hovermode="x unified",
    )


def render(contest: Contest) -> str:
    """One HTML page with the figure and the table inside."""
    record = contest_record(contest)
    head, *rows = record.rows
    table = "".join(
        f"<tr>{''.join(f'<{cell}>{html.escape(text)}</{cell}>' for text in row)}</tr>"
        for cell, row in [("th", head), *(("td", row) for row in rows)]
    )
    seeds = max((len(one) for one in contest.replays.values()), default=0)
    return _PAGE.substitute(
        title=html.escape(f"Searches replayed on {contest.table}"),
        caption=html.escape(
            f"{contest.configs} configurations, {seeds} seeds, {contest.workers} simulated "
            f"worker{'s' if contest.workers != 1 else ''}. Lines are means, bands are 95 % bootstrap intervals over "
            "seeds; the table has medians."
        ),
        ink=INK,
        figure=contest_figure(record).to_html(full_html=False, include_plotlyjs=True),
        table=table,
    )


def _seconds(band: Band) -> str:
    if not math.isfinite(band.value):
        return "not reached"
    return f"{_number(band.value)} ({_number(band.low)} to {_number(band.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "not reached"
