"""Parallel coordinates: one line per complete trial through its parameters and objectives."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from autopeft.domain.candidate import Setting
from autopeft.domain.objective import Objective
from autopeft.domain.results import RunResults, ScoredTrial

from .importance import importance_record
from .numbers import label, scale_of, setting, titled
from .style import GRID, MUTED, TEXT, Panel, View, sequence, styled

GAP = "not used"
"""Tick of trials in which a conditional parameter does not exist."""
_PARAMETERS = 12
_LINES = 1000
"""Dominated trials drawn at most; more are a blot, and a machine without a GPU needs seconds for them."""
_TICK = 14
"""Pixels of height for each value written along an axis."""
_TICKS = 64
"""Values written along an axis at most; of more, every n-th."""
_LADDER = 8
"""Whole numbers with at most this many values are drawn as evenly spaced steps."""


@dataclass(frozen=True)
class Column:
    """One axis: where each trial crosses it, and what is written along it."""

    name: str
    positions: tuple[float, ...]
    ticks: tuple[tuple[float, str], ...]
    low: float
    high: float


@dataclass(frozen=True)
class ParallelRecord:
    """All axes, and the trials' quality that colours the lines (larger is better)."""

    numbers: tuple[int, ...]
    """Trial numbers, aligned with every column's positions."""
    columns: tuple[Column, ...]
    colours: tuple[float, ...]
    left_out: int
    """Parameters that vary but are not shown."""
    rare: int
    """Parameters, beyond these, that fewer than two of the trials drawn have: an axis of theirs compares nothing."""
    complete: int
    """Complete trials of the run, drawn or not."""


def parallel_record(results: RunResults) -> ParallelRecord:
    """Axes of the parameters that vary, most important first where that is known, then of the objectives."""
    complete = [one for one in results.trials if one.values is not None]
    scored = _sample(complete, results.front.numbers)
    rows = [one.trial.parameters for one in scored]
    names = list(dict.fromkeys(name for row in rows for name in row))
    having = {name: sum(name in row for row in rows) for name in names}
    shared = [name for name in names if having[name] > 1]
    varying = [name for name in shared if len({repr(row.get(name)) for row in rows}) > 1]
    rank = {name: index for index, name in enumerate(importance_record(results).parameters)}
    # Among parameters of unknown importance those of most trials come first: a method's own knob is of few.
    shown = sorted(varying, key=lambda name: (rank.get(name, len(rank)), -having[name]))[:_PARAMETERS]
    columns = [parameter_column(name, [row.get(name) for row in rows]) for name in shown]
    columns += [
        _objective_column(objective, [(one.values or ())[index] for one in scored])
        for index, objective in enumerate(results.objectives)
    ]
    quality = results.objectives.index(results.quality_objective() or results.objectives[0])
    sign = -results.objectives[quality].sign
    return ParallelRecord(
        numbers=tuple(one.trial.number for one in scored),
        columns=tuple(columns),
        colours=tuple(sign * (one.values or ())[quality] for one in scored),
        left_out=len(varying) - len(shown),
        rare=len(names) - len(shared),
        complete=len(complete),
    )


def _sample(complete: Sequence[ScoredTrial], front: frozenset[int]) -> list[ScoredTrial]:
    """All of the front and about every n-th of the rest, so that no more lines are drawn than can be told apart."""
    others = [one for one in complete if one.trial.number not in front]
    step = max(1, math.ceil(len(others) / _LINES))
    kept = front | {one.trial.number for one in others[::step]}
    return [one for one in complete if one.trial.number in kept]


def parameter_column(name: str, values: Sequence[Setting | None]) -> Column:
    """The axis of one parameter; None is a trial in which it does not exist, drawn at a tick below the others."""
    present = [value for value in values if value is not None]
    numeric = [float(value) for value in present if isinstance(value, int | float) and not isinstance(value, bool)]
    distinct = sorted(set(present), key=lambda value: (isinstance(value, str), value))
    if len(numeric) < len(present) or (len(distinct) <= _LADDER and all(isinstance(value, int) for value in distinct)):
        place: dict[Setting, float] = {value: float(index) for index, value in enumerate(distinct)}
        step = math.ceil(len(distinct) / _TICKS) or 1
        ticks = [(place[value], setting(value)) for value in distinct[::step]]
        positions = [math.nan if value is None else place[value] for value in values]
    else:
        log = min(numeric) > 0 and max(numeric) / min(numeric) > 20
        positions = [
            math.nan if value is None else math.log10(float(value)) if log else float(value) for value in values
        ]
        ticks = [(at, f"{10**at if log else at:.3g}") for at in _ticks(min(numeric), max(numeric), log)]
    return _with_gap(name, positions, ticks)


def _objective_column(objective: Objective, values: Sequence[float]) -> Column:
    scale = scale_of(objective.unit, values)
    scaled = [value * scale.factor for value in values]
    ticks = [(at, f"{at:.4g}") for at in _ticks(min(scaled), max(scaled), False)] if scaled else []
    return _with_gap(titled(label(objective), scale.unit), scaled, ticks)


def _with_gap(name: str, positions: Sequence[float], ticks: Sequence[tuple[float, str]]) -> Column:
    present = [at for at in positions if math.isfinite(at)] + [at for at, _ in ticks]
    low, high = (min(present), max(present)) if present else (0.0, 0.0)
    width = (high - low) or 1.0
    if all(math.isfinite(at) for at in positions):
        return Column(name, tuple(positions), tuple(ticks), low, high if high > low else low + width)
    gap = low - 0.2 * width
    filled = tuple(at if math.isfinite(at) else gap for at in positions)
    return Column(name, filled, ((gap, GAP), *ticks), gap, high)


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Positions of both ends and of the round numbers that are not too near to them."""
    start, end = (math.log10(low), math.log10(high)) if log else (low, high)
    if end <= start:
        return [start]
    room = 0.08 * (end - start)
    return [start, *(at for at in _round_ticks(low, high, log) if start + room < at < end - room), end]


def _round_ticks(low: float, high: float, log: bool) -> list[float]:
    """About five round numbers between two values, the first below the second.

    On a log scale the exponents of powers of ten, and of twice and five times these where the span is short.
    """
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        per_power = (1, 2, 5) if len(powers) <= 3 else (1,)
        candidates = [math.log10(digit * 10.0**power) for power in powers for digit in per_power]
        return [at for at in candidates if math.log10(low) - 1e-9 <= at <= math.log10(high) + 1e-9]
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * digit for digit in (1, 2, 5, 10) if size * digit >= raw)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def parallel_figure(record: ParallelRecord) -> go.Figure:
    """One line per trial, darker for better quality; dragging along an axis keeps the lines that cross there."""
    dimensions = [
        {
            "label": "<br>".join(map(html.escape, _heading(column.name))),
            "values": np.array(column.positions),
            "range": [column.low, column.high],
            "tickvals": [at for at, _ in column.ticks],
            "ticktext": [_short(text) for _, text in column.ticks],
        }
        for column in record.columns
    ]
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            customdata=np.array(record.numbers),
            line={"color": np.array(record.colours), "colorscale": sequence(), "showscale": False},
            labelfont={"color": TEXT, "size": 12},
            tickfont={"color": MUTED, "size": 11},
            rangefont={"color": "rgba(0,0,0,0)", "size": 1},
            unselected={"line": {"color": GRID, "opacity": 0.25}},
            labelside="top",
        )
    )
    most = max((len(column.ticks) for column in record.columns), default=0)
    # Ticks stand to the left of their axis, so the first axis needs room for its own.
    first = max((len(_short(text)) for column in record.columns[:1] for _, text in column.ticks), default=0)
    left = max(70, 14 + 7 * first)
    return styled(figure, max(420, 80 + _TICK * most), margin={"l": left, "r": 70, "t": 56, "b": 24})


def _short(text: str) -> str:
    return text if len(text) <= 16 else text[:15] + "…"


def _heading(name: str) -> tuple[str, ...]:
    """The name in the lines of an axis' label; a long one of several parts has two."""
    first, dot, last = name.rpartition(".")
    return (first, dot + last) if dot and len(name) > 15 else (name,)


def parallel_panel(results: RunResults) -> Panel:
    """The panel; it wants at least two complete trials."""
    record = parallel_record(results)
    enough = len(record.numbers) > 1
    longest = max((len(line) for column in record.columns for line in _heading(column.name)), default=0)
    caption = (
        "One line per complete trial; the stronger its colour, the better its quality. Drag along an axis to keep only "
        "the lines that cross there; drag a label to move its axis."
    )
    if record.complete > len(record.numbers):
        caption += f" Drawn are the front and an even sample: {len(record.numbers):,} of {record.complete:,} trials."
    if record.left_out:
        caption += f" {record.left_out} less important parameters are left out."
    if record.rare:
        caption += f" Parameters that fewer than two of these trials have are left out, {record.rare} in all."
    return Panel(
        name="parallel",
        title="Parameters and objectives",
        caption=caption,
        views=(View("All", parallel_figure(record)),) if enough else (),
        empty="Two complete trials are needed to compare their parameters.",
        min_width=max(90, 7 * longest) * len(record.columns) + 70,
    )
