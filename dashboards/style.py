"""Colours, the layout that all figures share, and what a panel hands to the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from autopeft.domain.trial import TrialStatus

TEXT = "#1f2430"
MUTED = "#5b6472"
GRID = "#e3e6eb"
SURFACE = "#fffffe"
OTHER = "#8d97a7"
"""Trials that are there for comparison."""
FRONT = "#0072b2"
LIMIT = "#d55e00"
TEST = "#009e73"
SEQUENCE = ("#bccddd", "#86b6d8", "#0a6ea9", "#06324f")
"""From least to most, light page."""

DARK = {
    TEXT: "#e7e9ee",
    MUTED: "#a3adba",
    GRID: "#2d333d",
    SURFACE: "#191d24",
    OTHER: "#7c8798",
    FRONT: "#56b4e9",
    LIMIT: "#f08a4b",
    TEST: "#2cc598",
    SEQUENCE[0]: "#3a4a5f",
    SEQUENCE[1]: "#2f6a94",
    SEQUENCE[2]: "#55b3e8",
    SEQUENCE[3]: "#d6eefc",
}
"""The colour that takes the place of each on a dark page; the page's script swaps them."""

STATUS = {
    TrialStatus.COMPLETE: "#009e73",
    TrialStatus.INFEASIBLE: "#e69f00",
    TrialStatus.STOPPED_EARLY: "#56b4ea",
    TrialStatus.INVALID: "#cc79a7",
    TrialStatus.CRASHED: "#d55e01",
    TrialStatus.LOST: "#a0522d",
    TrialStatus.CANCELLED: "#8d97a8",
    TrialStatus.RUNNING: "#0072b3",
    TrialStatus.PENDING: "#b5bcc8",
}
"""Okabe-Ito where it has enough colours; the same on both pages, and a status is never told by colour alone."""

MANY_POINTS = 2000
"""Beyond this many points a scatter is drawn with WebGL and its hover text is short."""


@dataclass(frozen=True)
class View:
    """One way to look at a panel; several are shown as a row of buttons."""

    label: str
    figure: go.Figure
    narrow: Mapping[str, Any] = field(default_factory=dict)
    """What the figure has instead on a page of at most 640 pixels, by dotted path (`layout.yaxis.showticklabels`)."""


@dataclass(frozen=True)
class Panel:
    """One titled box of the page with a figure, or with a sentence that says why there is none."""

    name: str
    title: str
    caption: str
    views: tuple[View, ...]
    empty: str = ""
    min_width: int = 0
    """Pixels the figure needs; on a narrower page it scrolls inside its box."""
    narrow_min_width: int | None = None
    """The same on a page of at most 640 pixels, where it is less; None is `min_width`."""


def sequence() -> list[tuple[float, str]]:
    """The colour scale from least to most."""
    return [(index / (len(SEQUENCE) - 1), colour) for index, colour in enumerate(SEQUENCE)]


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Give a figure the look that all share; `layout` adds to it or overrides it. Height in pixels."""
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 12},
        "tickfont": {"color": MUTED},
    }
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 16, "r": 16, "t": 16, "b": 16},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": TEXT},
        hoverlabel={"bgcolor": SURFACE, "bordercolor": GRID, "font": {"color": TEXT, "size": 12}, "align": "left"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": MUTED}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": TEXT},
        dragmode="zoom",
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(**layout)
    return figure
