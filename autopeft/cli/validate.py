"""`autopeft validate`: every mistake of a spec at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from autopeft.app.spec_file import spec_of_file
from autopeft.cli.options import Json
from autopeft.cli.tables import bytes_text, output, print_json


def command(
    spec: Annotated[Path, typer.Argument(help="YAML file of a search spec.", metavar="SPEC")], json: Json = False
) -> None:
    """Check a spec, its model, its data and its space, without training anything."""
    from autopeft.app.planning import make_plan

    wanted = spec_of_file(spec)
    plan = make_plan(wanted)
    task, layout = plan.inspection.task, plan.inspection.layout
    size = plan.space.size()
    facts = {
        "run": wanted.run_name,
        "model": f"{wanted.model.source}: {len(layout.layers)} layers, {layout.hidden_size} wide, "
        f"{layout.parameters:,} parameters, {bytes_text(layout.weights_bytes)}",
        "data": ", ".join(f"{rows} {split}" for split, rows in task.rows.items())
        + (f"; {len(task.labels)} classes" if task.labels else "; regression"),
        "objectives": ", ".join(one.name for one in plan.objectives),
        "space": f"{plan.space.name}: {len(plan.space.parameters)} parameters, "
        + ("continuous" if size is None else f"{size:,} configurations"),
        "budget": str(wanted.budget),
        "workers": str(plan.resources.workers),
        "notices": list(plan.notices),
    }
    if json:
        print_json(facts)
        return
    console = output()
    for key, value in facts.items():
        for line in value if isinstance(value, list) else [value]:
            console.print(f"{key:<11}{escape(str(line))}", soft_wrap=True)
    console.print("[green]valid[/]")
