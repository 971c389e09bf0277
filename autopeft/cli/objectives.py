"""`autopeft objectives`: what can be optimised."""

from __future__ import annotations

from rich.table import Table

from autopeft import plugins
from autopeft.app.objectives import load_objectives
from autopeft.cli.options import Json
from autopeft.cli.tables import output, print_json


def command(json: Json = False) -> None:
    """List the objectives."""
    found = load_objectives(tuple(plugins.names(plugins.OBJECTIVES)))
    if json:
        print_json(
            [{"name": one.name, "direction": one.direction, "unit": one.unit, "summary": one.summary} for one in found]
        )
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("name", "direction", "unit", "what it is"):
        table.add_column(column)
    for one in found:
        table.add_row(one.name, one.direction.value, one.unit.value, one.summary)
    output().print(table)
