"""Arguments that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_RUNS = Path("runs")

Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder that holds the runs.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="AUTOPEFT_STORE",
        show_envvar=True,
        help="Database of the trial table, for example postgresql://user@host/db; default: a SQLite file in the run.",
    ),
]
RunName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run; see `autopeft list`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]
Objectives = Annotated[
    str | None,
    typer.Option("--objectives", metavar="NAMES", help="Score by these instead, joined by commas; trains nothing."),
]


def names_of(text: str | None) -> tuple[str, ...]:
    """`accuracy, adapter_bytes` as names; nothing for None."""
    return tuple(part.strip() for part in text.split(",")) if text else ()
