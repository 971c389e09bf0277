"""Masks, scores and draws of a trial come from its seed: clocks and other random numbers change nothing."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.domain.candidate import Pruning
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.artefact import RECORD
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.pruning.criteria import DEFAULTS
from tests.unit.evaluate_trials import opened, run, spec_of, task_of
from tests.unit.policy_runs import policy_of


def treated(evaluator: TorchEvaluator, folder: Path, number: int, criterion: str, policy: str) -> EvaluationTask:
    """A trial that estimates, prunes and trains by a policy, with dropout."""
    settings = {"ist": {"interval": 2, "trained": 0.34}, "dropbp": {"drop": 0.5, "sensitivity_at": 0.3}}
    task = task_of(evaluator, folder, number, dropout=0.1)
    asked = {**DEFAULTS, "heads": 0.5, "modules": 0.3, "masks": "fold", "penalty": 0.01}
    pruning = Pruning(criterion=criterion, settings=asked)
    changes = {"pruning": pruning, "policy": policy_of(policy, **settings[policy])}
    return task.model_copy(update={"candidate": task.candidate.model_copy(update=changes)})


def wild(draw: random.Random) -> Callable[[], float]:
    """A clock that jumps to and fro."""
    return lambda: 1e6 * draw.random()


@pytest.mark.parametrize(("criterion", "policy"), [("light-peft", "ist"), ("random", "dropbp"), ("magnitude", "ist")])
def test_clocks_and_other_random_numbers_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str, policy: str
) -> None:
    evaluator = opened(spec_of(tmp_path, training={"steps": 16}))
    found: list[dict[str, Any]] = []
    for number in range(2):
        for seeded in (random.seed, np.random.seed, torch.manual_seed):
            seeded(100 + number)
        with monkeypatch.context() as patched:
            if number:
                draw = random.Random(1)
                for clock in ("perf_counter", "monotonic", "time", "process_time"):
                    patched.setattr(time, clock, wild(draw))
            outcome, _ = run(evaluator, treated(evaluator, tmp_path, number, criterion, policy))
        assert outcome.status is TrialStatus.COMPLETE, outcome.failure
        measured = outcome.measurements
        assert measured is not None
        folder = tmp_path / f"artefact-{number}"
        found.append(
            {
                "pruned": json.loads((folder / RECORD).read_text())["pruning"],
                "scores": measured.layer_scores,
                "losses": measured.first_losses,
                "quality": measured.quality,
                "weights": (folder / "adapter_model.safetensors").read_bytes(),
            }
        )
    assert found[0] == found[1]
    assert (policy == "ist") == bool(found[0]["scores"])
