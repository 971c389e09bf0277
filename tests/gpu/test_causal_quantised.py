"""Bases in 4 and 8 bits: only what needs a GPU and bitsandbytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.inspection import inspect_run
from autopeft.evaluate.pipeline import open_evaluator
from tests.unit.causal_models import lora_of, save_language_model, write_opinions
from tests.unit.evaluate_trials import run

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"),
]


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_a_quantised_language_model_is_trained_and_its_head_stays_whole(tmp_path: Path, load_in: str) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}
    folder = save_language_model(tmp_path / "model", **sizes)
    spec = SearchSpec.model_validate(
        {
            "model": {"source": str(folder), "load_in": load_in},
            "data": write_opinions(tmp_path),
            "training": {"steps": 30, "batch_size": 8},
        }
    )
    predicted = inspect_run(spec).layout
    evaluator = open_evaluator(spec.model_dump(mode="json"), device="cuda")
    bench = evaluator._bench
    kind = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[load_in]
    assert type(bench.model.model.layers[0].self_attn.q_proj).__name__ == kind
    assert type(bench.model.lm_head) is nn.Linear
    assert bench.model.model.norm.weight.dtype == torch.float32
    assert bench.layout.quantised
    assert predicted.quantised
    assert predicted.weights_bytes == pytest.approx(bench.layout.weights_bytes, rel=0.15)
    before = bench.validation.score(bench.model, bench.device, bench.dtype).quality["validation_loss"]
    task = EvaluationTask(
        number=0, attempt=0, seed=1, candidate=lora_of(bench.layout), artefact_dir=str(tmp_path / "artefact")
    )
    outcome, _ = run(evaluator, task)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert outcome.measurements.quality["validation_loss"] < before
