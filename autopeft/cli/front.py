"""`autopeft front`: the Pareto front of a run as a table."""

from __future__ import annotations

from rich.markup import escape

from autopeft.app.results import load_results, opened
from autopeft.cli.memory import elsewhere_text
from autopeft.cli.options import DEFAULT_RUNS, Json, Objectives, RunName, Runs, StoreUrl, names_of
from autopeft.cli.tables import front_table, output, print_json
from autopeft.domain.repetition import believed
from autopeft.export.tables import front_rows


def command(
    name: RunName,
    runs: Runs = DEFAULT_RUNS,
    store: StoreUrl = None,
    objectives: Objectives = None,
    json: Json = False,
) -> None:
    """Print the Pareto front of a run."""
    with opened(name, runs, store, names_of(objectives)) as run:
        results = load_results(run)
    if json:
        print_json(front_rows(results))
        return
    console = output()
    if not results.front.members:
        console.print("The front is empty: no trial has completed yet.")
        return
    tested = any(one.trial.test_quality for one in results.front.members)
    estimates = believed(results.objectives, results.trials).estimates
    console.print(front_table(results.front, results.record.task.metric, with_test=tested, estimates=estimates))
    if there := elsewhere_text(results):
        console.print(f"[dim]{escape(there)}[/]", soft_wrap=True)
