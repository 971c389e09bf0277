"""`autopeft export`: one point of the front as a folder that peft, or transformers alone, loads."""

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
    whole: Annotated[
        bool,
        typer.Option("--whole", help="The whole model with the adapter merged, which `from_pretrained` loads."),
    ] = False,
    runs: Runs = DEFAULT_RUNS,
    store: StoreUrl = None,
    json: Json = False,
) -> None:
    """Export a trained adapter with its recipe and model card."""
    with opened(name, runs, store) as run:
        path = export(run, pick, out or _default(name, pick, whole), whole)
    if json:
        print_json({"pick": pick, "folder": str(path), "whole": whole})
    else:
        print(path)


def _default(name: str, pick: str, whole: bool) -> Path:
    return Path(re.sub(r"[^\w.-]+", "_", f"{name}-{pick}{'-whole' if whole else ''}"))
