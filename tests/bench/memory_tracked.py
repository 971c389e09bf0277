"""Predicted memory against that tracked in real trials on the CPU: every method, policy and pruning.

    OMP_NUM_THREADS=1 python tests/bench/memory_tracked.py [--picture FILE.svg] [--only NAME ...]

Each trial trains for four steps on 128 rows of the embedded data; its tracked peak is compared with what was foretold
for it. The five largest differences are named.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from scatter import scatter

from autopeft.domain.candidate import Candidate, Insertion, Policy, Pruning
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Outcome
from autopeft.evaluate.memory.forecast import open_forecast
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.pipeline import TorchEvaluator, open_evaluator
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA

STEPS, ROWS = 4, 128
SETTINGS: dict[str, dict[str, int]] = {"adamss-asa": {"asa_target_subspaces": 10}}
"""Where a method's own settings do not fit three layers."""


def candidates(layout: ModelLayout) -> dict[str, Candidate]:
    """Every method at its usual size in three random layers, LoRA with every policy and pruning, and the head."""
    draw, depth = random.Random(1), len(layout.layers)
    found = {"head alone": Candidate(insertions=(), learning_rate=1e-4)}
    for name, method in METHODS.items():
        insertion = Insertion(
            method=name,
            layers=tuple(sorted(draw.sample(range(depth), 3)) if method.facts.takes_layers else range(depth)),
            modules=method.default_modules(layout) if method.facts.takes_modules else (),
            settings={**method.facts.defaults, **SETTINGS.get(name, {})},
        )
        if not method.problems(insertion, layout):
            found[name] = Candidate(insertions=(insertion,), learning_rate=1e-4)
    lora = Insertion(
        method="lora",
        layers=tuple(range(depth)),
        modules=tuple(sorted(role.value for role in layout.roles())),
        settings={**METHODS["lora"].facts.defaults, "rank": 8},
    )
    for name, policy in POLICIES.items():
        how = Policy(name=name, settings=dict(policy.facts.defaults))
        found[f"lora, {name}"] = Candidate(insertions=(lora,), learning_rate=1e-4, policy=how)
    for name, criterion in CRITERIA.items():
        what = Pruning(criterion=name, settings=dict(criterion.facts.defaults))
        found[f"lora, {name}"] = Candidate(insertions=(lora,), learning_rate=1e-4, pruning=what)
    return found


def trained(evaluator: TorchEvaluator, candidate: Candidate) -> Outcome:
    """One trial, start to end."""
    with tempfile.TemporaryDirectory() as folder:
        task = EvaluationTask(number=0, attempt=1, seed=0, candidate=candidate, artefact_dir=folder)
        evaluation = evaluator.evaluate([task])
        try:
            while True:
                next(evaluation)
        except StopIteration as end:
            outcome: Outcome = end.value[0]
            return outcome


def main() -> None:
    """Print every comparison and the summary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    spec = SearchSpec.model_validate(
        {"training": {"steps": STEPS, "rungs": [1.0]}, "data": {"source": "python-docs", "max_train_rows": ROWS}}
    )
    evaluator = open_evaluator(spec.model_dump(mode="json"), 1, "cpu")
    forecast = open_forecast(spec, "cpu")
    errors: list[tuple[float, str]] = []
    points = []
    known = candidates(forecast.layout)
    print(f"this model takes {len(METHODS.keys() & known.keys())} of {len(METHODS)} methods, without", end=" ")
    print(", ".join(METHODS.keys() - known.keys()) or "none")
    for name, candidate in known.items():
        if asked.only and name not in asked.only:
            continue
        began = time.perf_counter()
        found = forecast.predict(candidate)
        took = time.perf_counter() - began
        outcome = trained(evaluator, candidate)
        peak = outcome.measurements.train_peak if outcome.measurements else None
        if found is None or peak is None:
            print(f"{name:24} {forecast.why_not(candidate) or outcome.failure}", flush=True)
            continue
        error = found.train_peak_bytes / peak.live_bytes - 1
        print(
            f"{name:24} predicted {found.train_peak_bytes / 2**20:8.2f} MiB in {took:5.2f} s, "
            f"tracked {peak.live_bytes / 2**20:8.2f} MiB, {error:+.2%}",
            flush=True,
        )
        errors.append((error, name))
        points.append((peak.live_bytes / 2**20, found.train_peak_bytes / 2**20, name))
    sizes = sorted(abs(error) for error, _ in errors)
    print(f"\n{len(sizes)} candidates: median {statistics.median(sizes):.2%},", end=" ")
    print(f"95th percentile {sizes[round(0.95 * (len(sizes) - 1))]:.2%}, worst {sizes[-1]:.2%}")
    for error, name in sorted(errors, key=lambda one: -abs(one[0]))[:5]:
        print(f"  {error:+.2%} {name}")
    if asked.picture:
        scatter(points, "tracked MiB", "predicted MiB", asked.picture)


if __name__ == "__main__":
    main()
