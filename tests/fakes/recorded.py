"""A made-up recorded table over the space `lora`: quality and memory by a formula, rungs on the way there."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np

from autopeft.domain.candidate import digest_of
from autopeft.domain.recording import RecordedRung, RecordedTable, RecordedTraining, RecordingFacts
from autopeft.domain.trial import FailureReason, TrialStatus
from autopeft.search.filling import fill
from tests.fakes.handmade import handmade_space

STEPS = (10, 30, 90)
SHARES = (1 / 9, 1 / 3, 1.0)
BATCH = 8


def quality(candidate) -> float:
    """Accuracy at the end, without noise."""
    (one,) = candidate.insertions
    size = math.log2(1 + one.settings["rank"]) * len(one.layers) * len(one.modules)
    off = abs(math.log10(candidate.learning_rate) + 2.7)
    return 0.2 + 0.7 * (1 - math.exp(-size / 20)) * math.exp(-(off**2))


def memory(candidate) -> int:
    """Bytes."""
    (one,) = candidate.insertions
    reached = 6 - min(one.layers)
    return int(90e6 + 15e6 * reached + 2e6 * len(one.layers) * len(one.modules) + 4e5 * one.settings["rank"])


def seconds(candidate) -> float:
    """Of a whole training."""
    (one,) = candidate.insertions
    return 2.0 + len(one.layers)


def facts(**changes) -> RecordingFacts:
    space = handmade_space()
    return RecordingFacts(
        **{
            "space": {"name": "lora"},
            "space_digest": digest_of("lora"),
            "parameters": space.parameters,
            "model": "handmade",
            "model_fingerprint": "m" * 16,
            "data": "made-up",
            "data_fingerprint": "d" * 16,
            "rows": {"train": 720, "validation": 100},
            "majority_share": 0.2,
            "metric": "accuracy",
            "higher_is_better": True,
            "recipe": {},
            "rungs": SHARES,
            "seed": 0,
            "seeds": 3,
            "batch_rows": BATCH,
            "device": "cpu",
            "clock": "cpu",
            "versions": {},
            "machine": "",
            "command": "",
            **changes,
        }
    )


def made_up_table(configs: int = 60, noise: float = 0.01, lost: tuple[int, ...] = ()) -> RecordedTable:
    """`lost`: configurations that run out of memory after their first rung."""
    trainings = []
    for config, (parameters, candidate) in enumerate(islice(fill(handmade_space(), 0), configs)):
        rng = np.random.default_rng([config, 11])
        for seed in range(3):
            final, whole = quality(candidate) + noise * float(rng.normal()), seconds(candidate)
            rungs = [
                RecordedRung(
                    step=step,
                    quality={"accuracy": round(0.2 + (final - 0.2) * share, 6)},
                    train_loss=1.0,
                    train_s=whole * step / 90,
                    evaluate_s=0.0,
                    wall_s=whole * step / 90,
                    cpu_s=whole * step / 90,
                )
                for step, share in zip(STEPS, (0.3, 0.6, 1.0), strict=True)
            ]
            failed = config in lost
            trainings.append(
                RecordedTraining(
                    config=config,
                    seed=seed,
                    parameters=parameters,
                    candidate=candidate,
                    status=TrialStatus.INFEASIBLE if failed else TrialStatus.COMPLETE,
                    reason=FailureReason.OUT_OF_MEMORY if failed else None,
                    rungs=tuple(rungs[:1] if failed else rungs),
                    planned_steps=90,
                    wall_s=rungs[0].wall_s if failed else whole,
                    cpu_s=rungs[0].cpu_s if failed else whole,
                    train_peak_bytes=memory(candidate),
                    trainable_parameters=1000,
                )
            )
    return RecordedTable.of(facts(), trainings)
