"""Base models in half precision: the head trains in float32, and what is saved is what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from autopeft.domain.candidate import Pruning
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.base_model import build_on_meta
from autopeft.evaluate.inspection import inspect_run
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.prediction import predict
from autopeft.evaluate.pruning.criteria import DEFAULTS
from autopeft.evaluate.quality import metrics
from tests.unit.evaluate_models import save_model
from tests.unit.evaluate_trials import opened, run, spec_of, task_of

CASES = [(kind, dtype) for kind in ("bert", "llama") for dtype in ("float16", "bfloat16")]


def half_spec(folder: Path, kind: str, dtype: str) -> SearchSpec:
    save_model(folder / kind, kind)
    return spec_of(folder, kind, model={"source": str(folder / kind), "dtype": dtype}, training={"steps": 8})


def plainly_loaded(spec: SearchSpec, adapter: Path, head: str) -> PeftModel:
    """What the model card tells everybody to do."""
    base = AutoModelForSequenceClassification.from_pretrained(spec.model.source, num_labels=2, dtype=spec.model.dtype)
    base.config.pad_token_id = 0
    base.get_submodule(head).float()
    return PeftModel.from_pretrained(base, str(adapter)).eval()


def plain_logits(evaluator: TorchEvaluator, model: PeftModel) -> torch.Tensor:
    """Of the test set's batches, by a model that was loaded without this project."""
    assert evaluator._test is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=model.dtype):
        return torch.cat([model(**batch.inputs).logits.float() for batch in evaluator._test.batches])


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_the_head_trains_and_is_saved_in_float32(tmp_path: Path, kind: str, dtype: str) -> None:
    spec = half_spec(tmp_path, kind, dtype)
    evaluator = opened(spec)
    outcome, _ = run(evaluator, task_of(evaluator, tmp_path))
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert len(outcome.measurements.first_losses) == 8
    assert all(math.isfinite(loss) for loss in outcome.measurements.first_losses)
    assert outcome.measurements.dtype == f"{dtype}, {dtype} autocast"
    adapter, head = tmp_path / "artefact-0", evaluator._bench.layout.head_paths[0]
    saved = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for name, tensor in saved.items()} == {torch.float32}
    assert any(f".{head}." in name for name in saved)
    evaluator.score_test(adapter)
    assert evaluator._test is not None
    said = json.loads((adapter / "test_predictions.json").read_text())
    logits = plain_logits(evaluator, plainly_loaded(spec, adapter, head))
    rows = torch.tensor([row for batch in evaluator._test.batches for row in batch.row_ids])
    assert [("bad", "good")[index] for index in logits[rows.argsort()].argmax(dim=1)] == said["predictions"]


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_what_is_inspected_without_weights_is_what_is_loaded(tmp_path: Path, kind: str, dtype: str) -> None:
    spec = half_spec(tmp_path, kind, dtype)
    evaluator = opened(spec)
    loaded = evaluator._bench.layout
    # Of the data, only an inspection of both knows.
    assert loaded == inspect_run(spec).layout.model_copy(update={"text_tokens": loaded.text_tokens})
    head = evaluator._bench.model.get_submodule(loaded.head_paths[0])
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
    base = build_on_meta(spec.model, evaluator._bench.task.info)
    assert inspect_layout(base.model, base.new_parameters).weights_bytes == loaded.weights_bytes
    # Half of the parameters' four bytes, but for the head.
    assert loaded.weights_bytes < 4 * loaded.parameters


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_pissa_on_half_precision_reports_the_quality_of_what_it_saved(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = opened(half_spec(tmp_path, "bert", dtype))
    looked_at: list[str] = []

    def looks(model: PeftModel, *rest: object) -> object:
        looked_at.append(str(model.peft_config["default"].init_lora_weights))
        return predict(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("autopeft.evaluate.tasks.classification.predict", looks)
    outcome, _ = run(evaluator, task_of(evaluator, tmp_path, variant="pissa"))
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert looked_at == ["pissa", "pissa", "True"]
    bench = evaluator._bench
    model = plainly_loaded(bench.spec, tmp_path / "artefact-0", bench.layout.head_paths[0])
    found = predict(model, bench.validation.batches, bench.device, bench.dtype)
    assert outcome.measurements is not None
    assert outcome.measurements.quality == metrics(bench.task.info, found.logits, found.labels)
    assert bench.untouched.differences() == []
    looked_at.clear()
    run(evaluator, task_of(evaluator, tmp_path, 1))
    assert looked_at == ["True", "True"], "other methods are not measured twice"


@pytest.mark.parametrize("pruned", [False, True], ids=["mixed", "pruned"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_put_in_place_trains_in_float32_too(tmp_path: Path, dtype: str, pruned: bool) -> None:
    """In float16 AdamW's epsilon is zero, so that the second step is no number; in bfloat16 small steps are lost."""
    evaluator = opened(half_spec(tmp_path, "llama", dtype))
    task = task_of(evaluator, tmp_path)
    if pruned:
        pruning = Pruning(criterion="light-peft", settings={**DEFAULTS, "heads": 0.5})
        candidate = task.candidate.model_copy(update={"pruning": pruning})
    else:
        (lora,) = task.candidate.insertions
        other = lora.model_copy(update={"method": "vera", "layers": (2,), "settings": METHODS["vera"].facts.defaults})
        lora = lora.model_copy(update={"layers": (0, 1)})
        candidate = task.candidate.model_copy(update={"insertions": (lora, other)})
    outcome, _ = run(evaluator, task.model_copy(update={"candidate": candidate}))
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert all(math.isfinite(loss) for loss in outcome.measurements.first_losses)
    saved = load_file(tmp_path / "artefact-0" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
