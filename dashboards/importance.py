"""Which parameters decide an objective."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go

from autopeft.domain.results import RunResults

from .numbers import label
from .style import FRONT, LIMIT, OTHER, TEST, Panel, View, styled

_SHOWN = 15
_ON_A_PHONE = {"layout.xaxis.title.text": "Share (%)"}
_COLOURS = (FRONT, LIMIT, TEST, OTHER)


@dataclass(frozen=True)
class ImportanceRecord:
    """Share of each objective's variation that each parameter explains, most important parameter first."""

    parameters: tuple[str, ...]
    shares: tuple[tuple[str, tuple[float, ...]], ...]
    """Label of an objective and its shares, aligned with `parameters`, from 0 to 1."""


def importance_record(results: RunResults) -> ImportanceRecord:
    """The most important parameters over all objectives; empty where there were too few trials."""
    given = [
        (label(objective), results.importance[objective.name])
        for objective in results.objectives
        if results.importance.get(objective.name)
    ]
    strongest: dict[str, float] = {}
    for _, shares in given:
        for name, share in shares.items():
            strongest[name] = max(share, strongest.get(name, 0.0))
    names = tuple(sorted(strongest, key=lambda name: (-strongest[name], name))[:_SHOWN])
    return ImportanceRecord(
        parameters=names,
        shares=tuple((title, tuple(shares.get(name, 0.0) for name in names)) for title, shares in given),
    )


def importance_figure(record: ImportanceRecord) -> go.Figure:
    """Horizontal bars, one colour per objective."""
    figure = go.Figure()
    names = [html.escape(name) for name in record.parameters]
    for index, (title, shares) in enumerate(record.shares):
        figure.add_bar(
            y=names,
            x=[100 * share for share in shares],
            orientation="h",
            name=html.escape(title),
            marker={"color": _COLOURS[index % len(_COLOURS)]},
            hovertemplate="%{y}: %{x:.1f} %<extra>%{fullData.name}</extra>",
        )
    height = 110 + len(names) * max(24, 13 * len(record.shares))
    return styled(
        figure,
        height,
        barmode="group",
        bargap=0.35,
        bargroupgap=0.08,
        yaxis_autorange="reversed",
        yaxis_ticks="outside",
        yaxis_tickcolor="rgba(0,0,0,0)",
        xaxis_title_text="Share of the variation explained (%)",
        xaxis_rangemode="tozero",
        showlegend=True,
    )


def importance_panel(results: RunResults) -> Panel:
    """The panel, or the sentence that it needs more trials."""
    record = importance_record(results)
    return Panel(
        name="importance",
        title="What matters",
        caption="How much of each objective's variation a parameter explains. Estimated from the complete trials: "
        "with few of them, read it as a hint.",
        views=(View("All", importance_figure(record), _ON_A_PHONE),) if record.parameters else (),
        empty="Too few trials completed to tell which parameters matter. A larger budget mends that.",
    )
