"""Arguments that several verbs take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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


class StoppingCommand(TyperCommand):
    """A verb whose `--early-stopping` may stand without a value and then means the rule `front`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What typer parses, with the value that was left out."""
        option = "--early-stopping"
        if option in args:
            at = args.index(option) + 1
            follows = args[at] if at < len(args) else "-"
            if not re.fullmatch(r"[a-z][a-z,-]*", follows) or Path(follows).exists():
                args = [*args[:at], "front", *args[at:]]
        return super().parse_args(ctx, args)


def names_of(text: str | None) -> tuple[str, ...]:
    """`accuracy, adapter_bytes` as names; nothing for None."""
    return tuple(part.strip() for part in text.split(",")) if text else ()
