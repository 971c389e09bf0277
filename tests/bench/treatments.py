"""What pruning and training policies cost and reach beside plain LoRA: scores, memory and speed on three data sets.

    OMP_NUM_THREADS=1 python tests/bench/treatments.py --data FOLDER --out treatments.jsonl

FOLDER holds `trec` and `sst2`, each with train.jsonl and validation.jsonl; without it only the embedded data is used.
Every variant is LoRA of rank 8 in all linear modules of all layers, trained by the same recipe with the same seeds.
`--out` gets one JSON line per finished training and per timing; what is there is not done again. Then the tables are
printed as Markdown.

Memory comes from the trainings, whose tracked steps are slow. So step times come from a pass of their own, in which
nothing is tracked and all variants do a step in turn, each on the same batch; they are seconds of the processor that
the one thread used, which others on the machine disturb less than wall time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain.candidate import Candidate, Insertion, Policy, Pruning
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Outcome, TrialStatus
from autopeft.evaluate import train
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.pipeline import TorchEvaluator, open_evaluator
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning.criteria import DEFAULTS
from autopeft.evaluate.trial_run import TrialRun
from tests.bench.treatment_tables import Record, tables

HALF = {name: float(DEFAULTS[name]) / 2 for name in ("heads", "ffn", "modules", "ranks")}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "light-peft": {"pruning": "light-peft"},
    "light-peft, half": {"pruning": "light-peft", **HALF},
    "random": {"pruning": "random"},
    "magnitude": {"pruning": "magnitude"},
    "ist": {"policy": "ist"},
    "random-sparse": {"policy": "random-sparse"},
    "lisa": {"policy": "lisa"},
    "dropbp": {"policy": "dropbp"},
    "random, half": {"pruning": "random", **HALF},
    "magnitude, half": {"pruning": "magnitude", **HALF},
}
"""Criterion or policy, and what is not at its default: the published ratios, and half of them."""
PARTS: dict[str, dict[str, Any]] = {
    "light-peft, backbone alone": {"pruning": "light-peft", "modules": 0.0, "ranks": 0.0},
    "random, backbone alone": {"pruning": "random", "modules": 0.0, "ranks": 0.0},
    "light-peft, PEFT alone": {"pruning": "light-peft", "heads": 0.0, "ffn": 0.0},
    "random, PEFT alone": {"pruning": "random", "heads": 0.0, "ffn": 0.0},
    "ist, standardised": {"policy": "ist", "reward": "standardised"},
}
"""Asked for by name: which part of a treatment does what."""
STEPS = {"python-docs": 160, "trec": 200, "sst2": 160}
"""Optimiser steps of a training."""
EPOCHS = 2
"""Where a set has more rows than the steps go through in so many epochs, a sample of the rows is trained on."""
BATCH = 8
RATE = 1e-3
"""Of 5e-4, 1e-3 and 3e-3 the one with which plain LoRA did well on python-docs and TREC."""
VALIDATION_ROWS = 400
"""So many training rows are put aside as validation of sets whose validation file serves as the test."""
TIMED_STEPS, TIMED_BATCHES = 24, 8
"""Planned optimiser steps of the timing pass, and predicted batches."""


class Unwatched:
    """A `PeakMeter` that looks at nothing, so that nothing is slowed down."""

    def step(self, number: int, load: Any = None) -> AbstractContextManager[None]:
        """See `PeakMeter.step`."""
        return nullcontext()

    def aside(self, size: float) -> AbstractContextManager[None]:
        """See `PeakMeter.aside`."""
        return nullcontext()

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """See `PeakMeter.add`."""

    def peak(self) -> None:
        """See `PeakMeter.peak`."""

    def mean_bytes(self) -> None:
        """See `PeakMeter.mean_bytes`."""

    def state(self) -> dict[str, Any]:
        """See `PeakMeter.state`."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """See `PeakMeter.load`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the sets other than python-docs")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines of what is finished")
    parser.add_argument("--sets", nargs="+", choices=list(STEPS))
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *PARTS], default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of every set's trainings, in place of its own number")
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate of every variant")
    parser.add_argument("--no-timing", action="store_true")
    given = parser.parse_args()
    sets = given.sets or (list(STEPS) if given.data else ["python-docs"])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in given.seeds:
            for name in sets:
                spec = spec_of(name, given.data, folder, seed, given.steps or STEPS[name])
                run_trials(spec, name, seed, given, folder)
                if not given.no_timing:
                    run_timing(spec, name, seed, given, folder)
    print(tables(finished(given.out), [*VARIANTS, *PARTS]))


def run_trials(spec: SearchSpec, name: str, seed: int, given: argparse.Namespace, folder: Path) -> None:
    """Every variant that is not in the file yet, by the ordinary evaluator."""
    done = {(one["set"], one["variant"], one["seed"]) for one in finished(given.out) if one["kind"] == "trial"}
    wanted = [variant for variant in given.variants if (name, variant, seed) not in done]
    if not wanted:
        return
    evaluator = opened(spec)
    for variant in wanted:
        began = time.perf_counter()
        task = task_of(evaluator, variant, seed, given.rate, folder)
        outcome = trained(evaluator, task)
        if outcome.status is not TrialStatus.COMPLETE:
            raise RuntimeError(f"{variant} on {name}, seed {seed}: {outcome.failure}")
        assert outcome.measurements is not None
        record = {
            "kind": "trial",
            "set": name,
            "variant": variant,
            "seed": seed,
            "rate": given.rate,
            "candidate": task.candidate.model_dump(mode="json"),
            "test": evaluator.score_test(Path(task.artefact_dir)),
            "measurements": outcome.measurements.model_dump(mode="json"),
            "pruned": kept_by(Path(task.artefact_dir)),
            "seconds": time.perf_counter() - began,
        }
        write(given.out, record)
        accuracy = {"validation": outcome.measurements.quality["accuracy"], "test": record["test"]["accuracy"]}
        print(f"{time.strftime('%H:%M:%S')} {name} {seed} {variant}: {accuracy}, {record['seconds']:.0f} s", flush=True)
    evaluator.close()


def run_timing(spec: SearchSpec, name: str, seed: int, given: argparse.Namespace, folder: Path) -> None:
    """Steps and predictions of all variants in turn, without any memory watched."""
    passes = [
        one for one in finished(given.out) if one["kind"] == "timing" and (one["set"], one["seed"]) == (name, seed)
    ]
    if any(set(given.variants) <= one["runs"].keys() for one in passes):
        return
    spec = spec.model_copy(
        update={"training": spec.training.model_copy(update={"steps": TIMED_STEPS, "rungs": (1.0,)})}
    )
    runs: dict[str, Timed] = {}
    with mock.patch.object(train, "training_meter", return_value=Unwatched()):
        for variant in given.variants:
            evaluator = opened(spec)
            runs[variant] = Timed(evaluator, task_of(evaluator, variant, seed, given.rate, folder))
        names = [*runs]
        for step in range(TIMED_STEPS):
            for variant in names[step % len(names) :] + names[: step % len(names)]:
                runs[variant].step()
        for number in range(TIMED_BATCHES):
            for variant in names[number % len(names) :] + names[: number % len(names)]:
                runs[variant].predict(number)
        found = {variant: run.close() for variant, run in runs.items()}
    write(given.out, {"kind": "timing", "set": name, "seed": seed, "runs": found})
    print(f"{time.strftime('%H:%M:%S')} {name} {seed} timed", flush=True)


class Timed:
    """One trial that is stepped from outside, on a model of its own; all times are of the processor."""

    def __init__(self, evaluator: TorchEvaluator, task: EvaluationTask) -> None:
        self._evaluator = evaluator
        self._bench = evaluator._bench
        self._run = TrialRun(self._bench, task)
        self._run._begin(None)
        self._steps = self._run._phases()
        self._seconds: list[float] = []
        self._own: list[float] = []
        """What the policy does before each step, which is part of the step's seconds."""
        self._predictions: list[float] = []
        batches = self._bench.validation.batches  # type: ignore[attr-defined]
        self._batches = [batches[place * len(batches) // TIMED_BATCHES] for place in range(TIMED_BATCHES)]

    def step(self) -> None:
        """One optimiser step; at the turn of the phases it includes the pruning, of which the seconds are not taken."""
        self._own.append(0.0)
        began = time.process_time()
        next(self._steps)
        self._seconds.append(time.process_time() - began)
        training = self._run._training
        assert training is not None
        policy = training._policy
        if policy is not None and "before_step" not in vars(policy):
            plain = policy.before_step

            def timed(step: int) -> None:
                began = time.process_time()
                plain(step)
                self._own[-1] = time.process_time() - began

            policy.before_step = timed  # type: ignore[method-assign]

    @torch.no_grad()
    def predict(self, number: int) -> None:
        """Predict one batch."""
        inserted, batch = self._run._inserted, self._batches[number]
        assert inserted is not None
        inserted.model.eval()
        began = time.process_time()
        inserted.model(**batch.inputs)
        self._predictions.append(time.process_time() - began)

    def close(self) -> dict[str, Any]:
        """Take everything out again; what was measured, as JSON."""
        found = self._run.measured()
        estimation = 0
        if (pruning := self._run._task.candidate.pruning) is not None:
            estimation = round(float(pruning.settings["estimation"]) * TIMED_STEPS)
        self._steps.close()  # type: ignore[attr-defined]
        self._run.restore()
        self._evaluator.close()
        return {
            "step_s": self._seconds,
            "own_s": self._own,
            "estimation_steps": estimation,
            "pruning_s": found.pruning_s,
            "predict_s": self._predictions,
        }


def opened(spec: SearchSpec) -> TorchEvaluator:
    return open_evaluator(spec.model_dump(mode="json"), threads=1, device="cpu")


def spec_of(name: str, source: Path | None, folder: Path, seed: int, steps: int) -> SearchSpec:
    """The one recipe. Seeds differ in the sample of training rows, their order, initial values and every draw."""
    data: dict[str, Any] = {}
    if name != "python-docs":
        assert source is not None
        data = {**splits(source / name, folder / name), "max_train_rows": steps * BATCH // EPOCHS}
    training = {"steps": steps, "batch_size": BATCH, "rungs": (1.0,)}
    return SearchSpec.model_validate({"data": data, "training": training, "seed": seed})


def splits(given: Path, folder: Path) -> dict[str, str]:
    """The given validation file as the test, and a validation part split off the training file, always the same."""
    folder.mkdir(exist_ok=True)
    rows = (given / "train.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    parts = {"validation": rows[:VALIDATION_ROWS], "train": rows[VALIDATION_ROWS:]}
    for part, lines in parts.items():
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "train": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"),
        "test": str(given / "validation.jsonl"),
    }


def candidate_of(evaluator: TorchEvaluator, variant: str, rate: float) -> Candidate:
    """LoRA as in Light-PEFT's script, with the variant's treatment."""
    layout, changes = evaluator._bench.layout, dict((VARIANTS | PARTS)[variant])
    insertion = Insertion(
        method="lora",
        layers=tuple(range(len(layout.layers))),
        modules=tuple(sorted(role.value for role in layout.roles())),
        settings={**METHODS["lora"].facts.defaults, "rank": 8, "alpha_ratio": 2.0, "dropout": 0.05},
    )
    criterion, name = changes.pop("pruning", None), changes.pop("policy", None)
    return Candidate(
        insertions=(insertion,),
        learning_rate=rate,
        pruning=Pruning(criterion=criterion, settings={**DEFAULTS, **changes}) if criterion else None,
        policy=Policy(name=name, settings={**POLICIES[name].facts.defaults, **changes}) if name else None,
    )


def task_of(evaluator: TorchEvaluator, variant: str, seed: int, rate: float, folder: Path) -> EvaluationTask:
    return EvaluationTask(
        number=0,
        attempt=0,
        seed=seed,
        candidate=candidate_of(evaluator, variant, rate),
        artefact_dir=tempfile.mkdtemp(dir=folder),
    )


def trained(evaluator: TorchEvaluator, task: EvaluationTask) -> Outcome:
    """The whole trial."""
    evaluation = evaluator.evaluate([task])
    try:
        next(evaluation)
        while True:
            evaluation.send(frozenset())
    except StopIteration as end:
        outcomes: dict[int, Outcome] = end.value
        return outcomes[task.number]


def kept_by(artefact: Path) -> dict[str, Any] | None:
    """What a pruned adapter says is kept of each layer."""
    path = artefact / "autopeft_adapter.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept: dict[str, Any] | None = found.get("pruning")
    return kept


def finished(out: Path) -> list[Record]:
    return list(_lines(out)) if out.exists() else []


def _lines(out: Path) -> Iterator[Record]:
    for line in out.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def write(out: Path, record: Record) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
