"""A program that a test can kill: a search with TPE on a SQLite file, the same command begins it and goes on with it.

    python -m tests.fakes.run_search FOLDER JSON

`JSON` has `runner`, `trials`, `workers`, and the arguments of the fake evaluator. Prints one line per event.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from autopeft.cluster.campaign import Campaign, RunEnd
from autopeft.cluster.local_runner import LocalRunner
from autopeft.domain.events import Event, RunOpened, TrialEnded, TrialStarted
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.search import make_sampler
from autopeft.store import open_store
from tests.fakes.searches import ToySpace, toy_campaign, toy_objectives, toy_record


def show(event: Event) -> None:
    """One line per event, at once."""
    match event:
        case RunOpened():
            print("opened", event.done, event.lost, flush=True)
        case TrialStarted():
            print("started", event.trial.number, event.trial.attempt, flush=True)
        case TrialEnded():
            print("ended", event.trial.number, event.trial.status, flush=True)


def main() -> int:
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    store = open_store(f"sqlite:///{folder / 'trials.sqlite'}")
    record = toy_record(budget=str(asked["trials"]))
    run = store.open(record.name) or store.create(record)
    workers = asked.get("workers", 1)
    sampler = make_sampler("tpe", ToySpace(), toy_objectives(), 0)
    campaign = toy_campaign(run, folder, sampler=sampler, workers=workers, on_event=show)
    evaluator = EvaluatorRef(target="tests.fakes.evaluators:build", arguments=asked["evaluator"])
    resources = Resources(workers=workers, cpus_per_worker=1, gpus_per_worker=0)
    end = _run(asked["runner"], evaluator, resources, campaign)
    print("end", end.interrupted, end.why, flush=True)
    store.close()
    return 130 if end.interrupted else 0


def _run(runner: str, evaluator: EvaluatorRef, resources: Resources, campaign: Campaign) -> RunEnd:
    if runner == "local":
        return LocalRunner(evaluator, resources).run(campaign)
    from autopeft.cluster.ray_runner import RayRunner

    return RayRunner(evaluator, resources).run(campaign)


if __name__ == "__main__":
    raise SystemExit(main())
