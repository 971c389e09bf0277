"""`autopeft report`: write the review page again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.app.results import load_results, opened, write_report
from autopeft.cli.options import DEFAULT_RUNS, Json, Objectives, RunName, Runs, StoreUrl, names_of
from autopeft.cli.tables import print_json


def command(
    name: RunName,
    out: Annotated[Path | None, typer.Option("--out", help="Default: report.html in the run.", metavar="FILE")] = None,
    runs: Runs = DEFAULT_RUNS,
    store: StoreUrl = None,
    objectives: Objectives = None,
    json: Json = False,
) -> None:
    """Write the review page of a run, also while it is running."""
    with opened(name, runs, store, names_of(objectives)) as run:
        path = out or run.folder.report
        write_report(load_results(run, with_importance=True), path)
    if json:
        print_json({"report": str(path)})
    else:
        print(path)
