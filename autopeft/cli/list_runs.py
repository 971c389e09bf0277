"""`autopeft list`: the runs in a folder."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from autopeft.app.folder import run_folders
from autopeft.app.results import load_results, opened
from autopeft.cli.options import DEFAULT_RUNS, Json, Runs, StoreUrl
from autopeft.cli.tables import output, print_json
from autopeft.domain.errors import UserError


def command(runs: Runs = DEFAULT_RUNS, store: StoreUrl = None, json: Json = False) -> None:
    """List the runs with their trials, front and best quality."""
    rows: list[dict[str, Any]] = []
    for folder in run_folders(runs):
        try:
            with opened(folder.name, runs, store) as run:
                results = load_results(run)
        except UserError as error:
            rows.append({"name": folder.name, "problem": error.problems[0].found})
            continue
        quality = results.front.quality_column
        first = results.objectives[quality]
        best = results.front.pick("most-accurate").values if results.front.members else None
        rows.append(
            {
                "name": folder.name,
                "trials": sum(results.counts().values()),
                "budget": str(results.budget),
                "front": len(results.front.members),
                "objective": first.name,
                "best": best[quality] if best else None,
            }
        )
    if json:
        print_json(rows)
        return
    console = output()
    if not rows:
        console.print(f"There are no runs in {runs}. Begin one: autopeft search", markup=False)
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("name", "trials", "budget", "front", "best"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for row in rows:
        if "problem" in row:
            table.add_row(str(row["name"]), "", "", "", str(row["problem"]))
            continue
        best_text = f"{row['objective']} {row['best']:.3f}" if row["best"] is not None else "-"
        table.add_row(str(row["name"]), str(row["trials"]), str(row["budget"]), str(row["front"]), best_text)
    console.print(table)
