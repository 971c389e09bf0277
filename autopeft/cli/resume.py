"""`autopeft resume`: go on with a run by name."""

from __future__ import annotations

from autopeft.cli.options import DEFAULT_RUNS, Json, RunName, Runs, StoreUrl
from autopeft.cli.search import Quiet, run_and_show


def command(
    name: RunName, runs: Runs = DEFAULT_RUNS, store: StoreUrl = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Go on with a run after an interruption, a crash or a power cut."""
    from autopeft.app.searching import resume

    run_and_show(lambda on_event: resume(name, runs, store_url=store, on_event=on_event), json, quiet)
