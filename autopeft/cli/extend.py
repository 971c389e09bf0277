"""`autopeft extend`: give a run more budget and go on."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.options import DEFAULT_RUNS, Json, RunName, Runs, StoreUrl
from autopeft.cli.search import Quiet, run_and_show
from autopeft.domain.budget import Budget


def command(
    name: RunName,
    budget: Annotated[str, typer.Option("--budget", "-b", help="How much more: +32, +2h.", metavar="+BUDGET")],
    runs: Runs = DEFAULT_RUNS,
    store: StoreUrl = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Raise a run's budget and go on with it."""
    from autopeft.app.searching import extend

    more = Budget.parse(budget)
    run_and_show(lambda on_event: extend(name, runs, more, store_url=store, on_event=on_event), json, quiet)
