"""A program that a test can kill: all of `autopeft.app.searching.search`, with a handmade model and a fake evaluator.

    python -m tests.fakes.run_app_search RUNS JSON

`JSON` has `trials` and the arguments of the fake evaluator. Prints one line per event.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from autopeft.app.planning import Plan
from autopeft.app.searching import search
from autopeft.domain.budget import Budget
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ResourceSpec, SearchSpec
from autopeft.evaluate.inspection import Inspection
from tests.fakes.handmade import handmade_layout, handmade_space
from tests.fakes.run_search import show
from tests.fakes.searches import toy_objectives


def plan(spec: SearchSpec) -> Plan:
    """What planning would find, with no model and no data to look at."""
    task = TaskInfo(
        kind="classification",
        labels=("a", "b"),
        metric="accuracy",
        metrics=("accuracy",),
        rows={"train": 10, "validation": 10, "test": 10},
        majority_share=0.5,
    )
    return Plan(
        spec=spec,
        inspection=Inspection(
            layout=handmade_layout(), task=task, data_fingerprint="0" * 16, model_fingerprint="0" * 16, notices=()
        ),
        objectives=toy_objectives(),
        space=handmade_space(),
        resources=Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0),
        notices=(),
    )


def main() -> None:
    runs, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    spec = SearchSpec(
        name="killed",
        space="lora",
        objectives=("accuracy", "train_peak_bytes"),
        budget=Budget(trials=asked["trials"]),
        resources=ResourceSpec(runner="local"),
    )
    evaluator = EvaluatorRef(target="tests.fakes.evaluators:build", arguments=asked["evaluator"])
    result = search(spec, runs, on_event=show, evaluator=evaluator, plan=plan)
    print("end", result.interrupted, result.why, flush=True)


if __name__ == "__main__":
    main()
