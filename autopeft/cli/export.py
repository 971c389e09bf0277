"""`autopeft export`: one point of the front as a folder that peft loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from autopeft.app.results import export, opened
from autopeft.cli.options import DEFAULT_RUNS, Json, RunName, Runs, StoreUrl
from autopeft.cli.tables import print_json


def command(
    name: RunName,
    pick: Annotated[
        str,
        typer.Option(
            "--pick", metavar="PICK", help='knee, most-accurate, smallest, "train_peak_bytes<=2GiB" or a trial number.'
        ),
    ] = "knee",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; default: NAME-PICK here.", metavar="DIR")
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Export a trained adapter with its recipe and model card."""
    with opened(name, runs, store) as run:
        path = export(run, pick, out or Path(re.sub(r"[^\w.-]+", "_", f"{name}-{pick}")))
    if json:
        print_json({"pick": pick, "folder": str(path)})
    else:
        print(path)
