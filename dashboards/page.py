"""The review page: one HTML file with everything inside, which asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from autopeft.domain.results import RunResults

from .front_figure import front_panel
from .header import Card, HeaderRecord, header_record
from .history import history_panel
from .importance import importance_panel
from .layer_scores import layer_scores_panel
from .layers import layers_panel
from .memory import memory_panel
from .parallel import parallel_panel
from .style import DARK, FRONT, GRID, LIMIT, MUTED, STATUS, SURFACE, TEXT, Panel
from .trials import TrialsRecord, trials_record

_PANELS = (front_panel, history_panel, importance_panel, layers_panel, layer_scores_panel, memory_panel, parallel_panel)


def render(results: RunResults, notes: Sequence[str] = ()) -> str:
    """The whole page as text, to be written as UTF-8.

    `notes` are sentences shown below the headline. Only two scripts run in it, Plotly's and the page's own: the
    policy in its head names their hashes, and allows no connection, frame, form or foreign image.
    """
    header = header_record(results)
    panels = [panel for make in _PANELS if (panel := make(results)) is not None]
    table = trials_record(results)
    data = {
        "figures": {
            panel.name: [
                {"label": view.label, "figure": json.loads(view.figure.to_json()), "narrow": view.narrow}
                for view in panel.views
            ]
            for panel in panels
        },
        "dark": DARK,
        "table": _table_data(table),
    }
    plotly, script = get_plotlyjs(), _read("page.js")
    return Template(_read("page.html")).substitute(
        policy=_policy(plotly, script),
        title=html.escape(f"{header.name} · AutoPEFT report"),
        css=_variables() + _read("page.css"),
        body="\n".join(
            [
                _header_html(header, notes),
                *(_panel_html(panel) for panel in panels),
                _table_html(table),
                _provenance_html(results),
            ]
        ),
        data=embedded(data),
        plotly=plotly,
        script=script,
    )


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: no character of it can end the element or start markup."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(*scripts: str) -> str:
    """The content security policy: a script runs where its hash is named here.

    Plotly sets styles inline, and its WebGL figures compile their draw calls with `new Function`, hence the two
    exceptions; neither lets a text from a trial become a script.
    """
    hashes = " ".join(
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _variables() -> str:
    """The palette as CSS variables, light and dark."""
    names = {"text": TEXT, "muted": MUTED, "line": GRID, "surface": SURFACE, "accent": FRONT, "warn": LIMIT}
    light = "".join(f"--{name}:{colour};" for name, colour in names.items())
    dark = "".join(f"--{name}:{DARK[colour]};" for name, colour in names.items())
    statuses = "".join(f"--status-{status.value}:{colour};" for status, colour in STATUS.items())
    return f":root{{{light}{statuses}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"


def _header_html(header: HeaderRecord, notes: Sequence[str]) -> str:
    chips = "".join(
        f'<li class="status status-{status.value}"><b>{count:,}</b> {status.value.replace("_", " ")}</li>'
        for status, count in header.counts
    )
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>" for name, text in header.facts
    )
    said = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    cards = "".join(_card_html(card) for card in header.cards)
    chosen = f'<section class="cards" aria-label="Recommended points">{cards}</section>' if cards else ""
    return (
        f'<header><p class="kind">AutoPEFT search</p><h1>{html.escape(header.name)}</h1>'
        f'<p class="headline">{html.escape(header.headline)}</p>{said}'
        f'<ul class="counts" aria-label="Trials by status">{chips}</ul><dl class="facts">{facts}</dl></header>{chosen}'
    )


def _card_html(card: Card) -> str:
    badges = "".join(f"<span>{html.escape(pick.replace('-', ' '))}</span>" for pick in card.picks)
    numbers = [*card.values, *([card.test] if card.test else [])]
    shown = "".join(
        f"<div><dt>{html.escape(number.name)}</dt><dd>{html.escape(number.value)}"
        + (f"<small>{html.escape(number.note)}</small>" if number.note else "")
        + "</dd></div>"
        for number in numbers
    )
    command = html.escape(card.command)
    return (
        f'<article class="card"><h2>{badges}<button type="button" class="link" data-trial="{card.number}">'
        f'trial {card.number}</button></h2><dl class="numbers">{shown}</dl>'
        f'<p class="parameters">{html.escape(card.candidate)}</p>'
        f'<div class="command"><code>{command}</code>'
        f'<button type="button" class="copy" aria-label="Copy the command: {command}">Copy</button></div></article>'
    )


def _panel_html(panel: Panel) -> str:
    name = html.escape(panel.name)
    head = f'<h2 id="{name}-title">{html.escape(panel.title)}</h2>'
    if not panel.views:
        return (
            f'<section class="panel" aria-labelledby="{name}-title">{head}<p>{html.escape(panel.empty)}</p></section>'
        )
    buttons = "".join(
        f'<button type="button" data-panel="{name}" data-view="{index}" aria-pressed="{str(index == 0).lower()}">'
        f"{html.escape(view.label)}</button>"
        for index, view in enumerate(panel.views)
    )
    switch = f'<div class="switch" role="group" aria-label="View">{buttons}</div>' if len(panel.views) > 1 else ""
    height = int(panel.views[0].figure.layout.height)
    narrow = panel.min_width if panel.narrow_min_width is None else panel.narrow_min_width
    return (
        f'<section class="panel panel-{name}" aria-labelledby="{name}-title"><div class="head">{head}{switch}</div>'
        f'<p class="caption">{html.escape(panel.caption)}</p>'
        '<p class="hint" hidden>More to the right: scroll sideways</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}-title">'
        f'<div class="figure" id="figure-{name}" data-figure="{name}" '
        f'style="--wide:{panel.min_width}px;--slim:{narrow}px;height:{height}px"></div></div></section>'
    )


def _table_html(table: TrialsRecord) -> str:
    if not table.rows:
        return '<section class="panel" id="trials"><h2>Trials</h2><p>No trial has run yet.</p></section>'
    found = [row.status for row in table.rows]
    statuses = [status.value for status in STATUS if status.value in found]
    filters = [("", "All", len(found)), ("front", "Front", sum(row.on_front for row in table.rows))]
    filters += [(status, status.replace("_", " ").capitalize(), found.count(status)) for status in statuses]
    buttons = "".join(
        f'<button type="button" data-filter="{value}" aria-pressed="{str(not value).lower()}"'
        f' class="status status-{value or "all"}">{text} <b>{count:,}</b></button>'
        for value, text, count in filters
        if count
    )
    headings = "".join(
        f'<th scope="col" class="{"number" if column.numeric else "word"}" aria-sort="none">'
        f'<button type="button" data-column="{index}">{html.escape(column.name)}</button></th>'
        for index, column in enumerate(table.columns)
    )
    return (
        '<section class="panel" id="trials" aria-labelledby="trials-title" tabindex="-1">'
        '<div class="head"><h2 id="trials-title">Trials</h2>'
        '<label class="search">Search <input type="search" id="trial-search" autocomplete="off" '
        'placeholder="rank, reason, layers"></label></div>'
        f'<div class="filters" role="group" aria-label="Show trials of one status">{buttons}</div>'
        '<p class="caption" id="trial-count" role="status"></p>'
        '<div class="scroll table" tabindex="0" role="region" aria-labelledby="trials-title">'
        f'<table><thead><tr>{headings}</tr></thead><tbody id="trial-rows"></tbody></table></div>'
        '<button type="button" id="trial-more" hidden>Show more</button>'
        "<noscript><p>The figures and this table need JavaScript; the same rows are in trials.parquet and "
        "front.csv beside this file.</p></noscript></section>"
    )


def _table_data(table: TrialsRecord) -> dict[str, Any]:
    """Rows under one-letter keys, because a run may have ten thousand of them."""
    return {
        "numeric": [column.numeric for column in table.columns],
        "rows": [
            {
                "n": row.number,
                "s": row.status,
                "f": row.on_front,
                "p": [pick.replace("-", " ") for pick in row.picks],
                "c": row.cells,
                "d": row.details,
                "e": row.failure,
                "t": row.traceback,
            }
            for row in table.rows
        ],
    }


def _provenance_html(results: RunResults) -> str:
    record = results.record
    made = record.provenance
    rows = [("Machine", made.machine), ("Data fingerprint", made.data_fingerprint)]
    rows += [("Model fingerprint", made.model_fingerprint)]
    rows += sorted(made.versions.items())
    rows += [(f"Objective {one.name}", f"{one.direction.value}: {one.summary}") for one in results.objectives]
    listed = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>" for name, text in rows)
    spec = json.dumps(record.spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return (
        '<section class="panel"><details><summary><h2>How this was made</h2></summary>'
        f'<dl class="facts">{listed}</dl><h3>Specification</h3><pre tabindex="0">{html.escape(spec)}</pre>'
        "</details></section>"
    )


def _read(name: str) -> str:
    return (files(__package__ or "autopeft.dashboards") / name).read_text(encoding="utf-8")
