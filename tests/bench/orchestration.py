"""What a trial costs besides its training: a search over an evaluator that returns at once.

    python tests/bench/orchestration.py [TRIALS] [SAMPLER]

Runs the same search over Ray Tune (2 workers) and in the calling process, both on SQLite in a temporary folder, and
prints milliseconds per trial after start-up with the shares of sampler, store, and the runner with everything else.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.cluster.local_runner import LocalRunner
from autopeft.cluster.ray_runner import RayRunner
from autopeft.domain.events import Event, TrialEnded, TrialStarted
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.search.samplers import make_sampler
from autopeft.store import open_store
from tests.fakes.searches import ToySpace, toy_campaign, toy_objectives, toy_record

WARM_UP = 10
"""Trials that end before the clock starts: workers are up by then."""


@dataclass
class Clock:
    """Seconds spent in the methods of a wrapped object, while `running`."""

    spent: dict[str, float] = field(default_factory=dict)
    running: bool = False

    def of(self, name: str, wrapped: Any) -> Any:
        """`wrapped`, with the time in its methods added under `name`."""
        clock = self

        class Timed:
            def __getattr__(self, attribute: str) -> Any:
                value = getattr(wrapped, attribute)
                return clock._timed(name, value) if callable(value) else value

        return Timed()

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                if self.running:
                    self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began

        return timed


def measure(runner: Any, workers: int, trials: int, sampler: str) -> tuple[float, float, dict[str, float]]:
    """Milliseconds per trial, seconds of start-up, and milliseconds per trial by part."""
    clock, marks = Clock(), []

    def listen(event: Event) -> None:
        if isinstance(event, TrialStarted) and not marks:
            marks.append(time.perf_counter())
        if isinstance(event, TrialEnded):
            marks.append(time.perf_counter())
            clock.running = len(marks) > WARM_UP

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/trials.sqlite")
        run = store.create(toy_record(budget=str(trials)))
        proposals = make_sampler(sampler, ToySpace(), toy_objectives(), 0, None)
        campaign = toy_campaign(
            clock.of("store", run),
            Path(folder),
            sampler=clock.of("sampler", proposals),
            workers=workers,
            on_event=listen,
        )
        began = time.perf_counter()
        reference = EvaluatorRef(target="tests.fakes.evaluators:build")
        runner(reference, Resources(workers=workers, cpus_per_worker=1, gpus_per_worker=0)).run(campaign)
        store.close()
    count = len(marks) - 1 - WARM_UP
    per_trial = (marks[-1] - marks[WARM_UP]) / count * 1000
    return per_trial, marks[WARM_UP] - began, {name: spent / count * 1000 for name, spent in clock.spent.items()}


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    sampler = sys.argv[2] if len(sys.argv) > 2 else "tpe"
    print(f"{trials} trials, sampler {sampler}, an evaluator that returns at once; after the first {WARM_UP} trials:")
    print(f"{'runner':<16}{'start-up s':>11}{'ms/trial':>10}{'sampler':>9}{'store':>9}{'rest':>9}")
    found = {}
    for name, runner, workers in (("ray, 2 workers", RayRunner, 2), ("local", LocalRunner, 1)):
        per_trial, start_up, parts = measure(runner, workers, trials, sampler)
        rest = per_trial - sum(parts.values())
        shares = "".join(f"{parts.get(part, 0.0):9.1f}" for part in ("sampler", "store"))
        print(f"{name:<16}{start_up:>11.1f}{per_trial:>10.1f}{shares}{rest:>9.1f}")
        found[name] = per_trial
    print(f"ray / local: {found['ray, 2 workers'] / found['local']:.2f}")


if __name__ == "__main__":
    main()
