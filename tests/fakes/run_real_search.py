"""A program that a test can kill: all of `autopeft.app.searching.search` on a tiny model that is really trained.

    python -m tests.fakes.run_real_search RUNS JSON

`JSON` has `spec` and the arguments of `tests.fakes.watched.open_watched`. Prints one line per event.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from autopeft.app.searching import search
from autopeft.cluster import interruption, pausing
from autopeft.domain.events import Event, TrialTakenUp
from autopeft.domain.ports import EvaluatorRef
from autopeft.domain.spec import SearchSpec
from tests.fakes import run_search


def show(event: Event) -> None:
    """One line per event, at once."""
    if isinstance(event, TrialTakenUp):
        print("taken up", event.number, event.taken_up.step, event.taken_up.problem, flush=True)
    else:
        run_search.show(event)


def main() -> int:
    runs, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    spec = SearchSpec.model_validate(asked["spec"])
    arguments = {"spec": spec.model_dump(mode="json"), "log": asked["log"], "kills": asked.get("kills", [])}
    evaluator = EvaluatorRef(target="tests.fakes.watched:open_watched", arguments=arguments)
    interruption.PATIENCE_S = pausing.PATIENCE_S = 60.0  # on a busy machine the first steps take seconds
    result = search(spec, runs, on_event=show, evaluator=evaluator)
    print("end", result.interrupted, result.why, flush=True)
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    raise SystemExit(main())
