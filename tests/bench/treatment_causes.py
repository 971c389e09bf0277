"""Why pruned and sparse trainings end below plain LoRA: one switch at a time, validated along the way.

    OMP_NUM_THREADS=1 python tests/bench/treatment_causes.py --data FOLDER --out causes.jsonl --set trec \
        --variants plain light-peft ist --steps 200 800 --rates 1e-3 3e-3 --seeds 0

The variants, the data and the recipe are those of `treatments.py`, with parts of the treatments beside them. Nothing is
tracked, so no memory is measured and a step is fast. At the pruning step the model is validated before and after it,
and what the masks say is kept; at the end of a training with IST every layer is damped alone, which is what IST's
scores are to tell. `--out` gets one JSON line per finished training; what is there is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate import train
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.policies import ist
from autopeft.evaluate.policies.probes import probe_rows
from autopeft.evaluate.pruning.phase import Estimation
from autopeft.evaluate.trial_run import TrialRun
from tests.bench import treatments
from tests.bench.treatment_cause_tables import key_of, line, report
from tests.bench.treatments import Unwatched, finished, kept_by, opened, spec_of, trained, write

NOTHING = {"heads": 0.0, "ffn": 0.0, "modules": 0.0, "ranks": 0.0}
CAUSES: dict[str, dict[str, Any]] = {
    "two phases": {"pruning": "light-peft", **NOTHING},
    "masks, nothing pruned": {"pruning": "light-peft", **NOTHING, "heads": 0.01, "ffn": 1e-4},
    "light-peft, folded": {"pruning": "light-peft", "masks": "fold"},
    "light-peft, heads alone": {"pruning": "light-peft", **NOTHING, "heads": 1 / 3},
    "light-peft, ffn alone": {"pruning": "light-peft", **NOTHING, "ffn": 1 / 3},
    "light-peft, modules alone": {"pruning": "light-peft", **NOTHING, "modules": 0.75},
    "light-peft, ranks alone": {"pruning": "light-peft", **NOTHING, "ranks": 0.5},
    "light-peft, ffn per layer": {"pruning": "light-peft", "ffn_scope": "layer"},
    "random-sparse, half": {"policy": "random-sparse", "trained": 0.5},
    "ist, half": {"policy": "ist", "trained": 0.5},
}
"""`two phases` is plain LoRA in the two trainings of a pruned one, each with its own warm-up and decay; with masks,
0.01 of 12 heads are none and 1e-4 of the FFN units is one."""
CHECK_ROWS = 128
"""Training rows on which layers are damped one by one."""


def main() -> None:
    treatments.PARTS.update(CAUSES)
    names = [*treatments.VARIANTS, *treatments.PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the sets other than python-docs")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines of what is finished")
    parser.add_argument("--set", choices=list(treatments.STEPS), default="trec")
    parser.add_argument("--variants", nargs="*", choices=names, default=["plain", "light-peft"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[200])
    parser.add_argument("--rates", type=float, nargs="+", default=[treatments.RATE])
    parser.add_argument("--rungs", type=int, default=1, help="validations of a training, evenly spaced")
    parser.add_argument("--no-test", action="store_true", help="leave the test scores out")
    parser.add_argument("--change", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the treatments")
    given = parser.parse_args()
    torch.set_num_threads(1)
    changes = {name: json.loads(text) for name, text in (one.split("=", 1) for one in given.change)}
    with tempfile.TemporaryDirectory() as temporary:
        for steps, seed in itertools.product(given.steps, given.seeds):
            run(given, steps, seed, changes, Path(temporary))
    print(report(finished(given.out)))


def run(given: argparse.Namespace, steps: int, seed: int, changes: Mapping[str, Any], folder: Path) -> None:
    """Every variant at every rate that is not in the file yet."""
    done = {(*key_of(one), one["seed"]) for one in finished(given.out)}
    wanted = []
    for variant, rate in itertools.product(given.variants, given.rates):
        about = {"set": given.set, "variant": variant, "steps": steps, "rate": rate, "changes": dict(changes)}
        if (*key_of(about), seed) not in done:
            wanted.append(about)
    if not wanted:
        return
    spec = spec_of(given.set, given.data, folder, seed, steps)
    rungs = tuple((place + 1) / given.rungs for place in range(given.rungs))
    training = spec.training.model_copy(update={"rungs": rungs})
    spec = spec.model_copy(update={"training": training, "checkpoint_s": None})
    evaluator = opened(spec)
    for about in wanted:
        began, notes = time.process_time(), Notes()
        task = changed(treatments.task_of(evaluator, about["variant"], seed, about["rate"], folder), changes)
        with untracked(evaluator), notes.taken():
            outcome = trained(evaluator, task)
        if outcome.status is not TrialStatus.COMPLETE:
            raise RuntimeError(f"{about}, seed {seed}: {outcome.failure}")
        assert outcome.measurements is not None
        found = outcome.measurements
        record = {
            **about,
            "seed": seed,
            "curve": [(one.step, one.quality["accuracy"], one.train_loss) for one in found.rungs],
            "test": None if given.no_test else evaluator.score_test(Path(task.artefact_dir))["accuracy"],
            "parameters": (found.trainable_parameters or 0) - (found.head_parameters or 0),
            "turn": notes.turn,
            "kept": kept_by(Path(task.artefact_dir)),
            "importance": found.layer_scores,
            "damped": notes.damped,
            "cpu_s": time.process_time() - began,
        }
        write(given.out, record)
        print(f"{time.strftime('%H:%M:%S')} {line(record)}", flush=True)
    evaluator.close()


@contextmanager
def untracked(evaluator: TorchEvaluator) -> Iterator[None]:
    """Measure no memory meanwhile."""
    validation = type(evaluator._bench.validation)
    with (
        mock.patch.object(train, "training_meter", return_value=Unwatched()),
        mock.patch.object(validation, "peak", return_value=None),
    ):
        yield


def changed(task: EvaluationTask, changes: Mapping[str, Any]) -> EvaluationTask:
    """With other settings of its pruning, or else of its policy."""
    for name in ("pruning", "policy"):
        treatment = getattr(task.candidate, name)
        if treatment is not None and changes:
            other = treatment.model_copy(update={"settings": {**treatment.settings, **changes}})
            return dataclasses.replace(task, candidate=task.candidate.model_copy(update={name: other}))
    return task


class Notes:
    """What a trial does not report: the turn of its two phases, and what its layers are worth."""

    def __init__(self) -> None:
        self.turn: dict[str, Any] = {}
        self.damped: list[float] = []
        """By how much the mean loss on training rows rises where one layer alone is damped as by IST's probes."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take them of the trial that is run meanwhile."""
        cut, close = TrialRun._prune, ist._Running.close

        def noted_cut(run: TrialRun, estimation: Estimation) -> None:
            self.turn["before"] = run._validate(run._here.model)["accuracy"]
            for name, masks in (("heads", estimation._masks.heads), ("ffn", estimation._masks.units)):
                self.turn[name] = [mask.values.detach().double().numpy().round(6).tolist() for mask in masks.values()]
            cut(run, estimation)
            self.turn["after"] = run._validate(run._here.model)["accuracy"]

        def noted_close(policy: ist._Running) -> None:
            if not self.damped:
                context, layers = policy.context, range(len(policy.context.gates.layers))
                rows = probe_rows(context.batches, CHECK_ROWS, np.random.default_rng(0))
                whole = context.probe(rows)
                self.damped = [policy._loss(rows, [place]) - whole for place in layers]
            close(policy)

        with mock.patch.object(TrialRun, "_prune", noted_cut), mock.patch.object(ist._Running, "close", noted_close):
            yield


if __name__ == "__main__":
    main()
