"""`autopeft status`: where a run stands."""

from __future__ import annotations

from collections import Counter

from rich.markup import escape

from autopeft.app.results import load_results, opened
from autopeft.cli.memory import elsewhere_text, memory_json, memory_text
from autopeft.cli.options import DEFAULT_RUNS, Json, RunName, Runs, StoreUrl
from autopeft.cli.tables import STATUS_STYLE, output, print_json, saved_text, seconds_text, stop_text
from autopeft.domain.fidelity import Stop, saved_by_stopping, stop_of
from autopeft.domain.results import RunResults
from autopeft.domain.start import SAMPLER
from autopeft.domain.trial import TrialStatus

MAX_FAILURES = 5
MAX_STOPPED = 5


def command(name: RunName, runs: Runs = DEFAULT_RUNS, store: StoreUrl = None, json: Json = False) -> None:
    """Print trials by status, the budget used and the latest failures of a run."""
    with opened(name, runs, store) as run:
        results = load_results(run)
    used_up = results.budget.used_up_by(results.spent)
    history = results.hypervolume_history()
    record = results.record
    found = [(one.trial.number, stop_of(one.trial, record.spec.training.rungs)) for one in results.trials]
    stops = {number: stop for number, stop in found if stop is not None}
    saved = saved_by_stopping(record, (one.trial for one in results.trials))
    if json:
        print_json(
            {
                "name": name,
                "trials": {status.value: count for status, count in results.counts().items()},
                "origins": origins(results),
                "budget": results.budget.model_dump(),
                "spent": results.spent.model_dump(),
                "used_up": used_up,
                "front": sorted(results.front.numbers),
                "hypervolume": history[-1].hypervolume if history else 0.0,
                "memory": memory_json(results),
                "stopped": {number: _stop_json(stop) for number, stop in stops.items()},
                "saved": None if saved is None else vars(saved),
            }
        )
        return
    console = output()
    console.print(f"[bold]{escape(name)}[/]  created {_when(results.record.created_at)}")
    counts = [
        f"[{STATUS_STYLE[status]}]{count} {status.value.replace('_', ' ')}[/]"
        for status, count in results.counts().items()
    ]
    console.print("trials   " + (", ".join(counts) or "none yet"))
    if set(origins(results)) - {SAMPLER}:
        console.print("from     " + escape(", ".join(f"{count} {name}" for name, count in origins(results).items())))
    state = f"used up ({used_up})" if used_up else f"{results.budget.share_used(results.spent):.0%} used"
    console.print(f"budget   {results.budget}, {state}; {seconds_text(results.spent.seconds)} so far")
    console.print(
        f"front    {len(results.front.members)} points, hypervolume {history[-1].hypervolume if history else 0:.3f}"
    )
    if memory := memory_text(results):
        console.print(f"memory   {memory}", soft_wrap=True)
    if there := elsewhere_text(results):
        console.print(f"         {escape(there)}", soft_wrap=True)
    if saved is not None:
        console.print(f"saved    {saved_text(saved)}", soft_wrap=True)
    for number, stop in list(stops.items())[-MAX_STOPPED:]:
        style = STATUS_STYLE[TrialStatus.STOPPED_EARLY]
        console.print(f"[{style}]trial {number}[/] {escape(stop_text(stop, record.task.metric))}", soft_wrap=True)
    failed = [
        one.trial
        for one in results.trials
        if one.trial.failure is not None and one.trial.status is not TrialStatus.COMPLETE and not one.trial.refused
    ]
    for trial in failed[-MAX_FAILURES:]:
        assert trial.failure is not None
        console.print(
            f"[{STATUS_STYLE[trial.status]}]trial {trial.number} {trial.status.value}[/]: {escape(trial.failure.text)}",
            soft_wrap=True,
        )
    if not used_up:
        console.print(f"go on    autopeft resume {escape(name)}")


def origins(results: RunResults) -> dict[str, int]:
    """How many trials came from where: the sampler, first guesses, a person, earlier runs."""
    return dict(Counter(one.trial.origin for one in results.trials))


def _stop_json(stop: Stop) -> dict[str, object]:
    return {"share": stop.share, "fidelity": stop.fidelity, "quality": stop.quality}


def _when(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
