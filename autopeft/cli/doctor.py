"""`autopeft doctor`: what this machine has, what is missing, and what mends it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from autopeft.cli.options import DEFAULT_RUNS, Json, Runs
from autopeft.cli.tables import output, print_json

_STYLE = {"ok": "green", "warning": "yellow", "missing": "red"}


def command(
    runs: Runs = DEFAULT_RUNS,
    hub: Annotated[bool, typer.Option("--hub/--no-hub", help="Whether to try the model hub.")] = True,
    json: Json = False,
) -> None:
    """Look at versions, devices, memory, disk, ray and hub access; exit code 1 where something is missing."""
    from autopeft.app.doctor import State, examine

    checks = examine(runs, hub)
    if json:
        print_json([{"name": one.name, "state": one.state, "found": one.found, "mend": one.mend} for one in checks])
    else:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for one in checks:
            text = escape(one.found) + (f"\n[bold]{escape(one.mend)}[/]" if one.mend else "")
            table.add_row(f"[{_STYLE[one.state.value]}]{one.state.value}[/]", one.name, text)
        output().print(table)
    if any(one.state is State.MISSING for one in checks):
        raise typer.Exit(1)
