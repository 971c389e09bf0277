"""On a GPU: the allocator's peaks, the tracker against them, and a trial after one that ran out of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from autopeft.domain.candidate import Pruning
from autopeft.domain.measurements import MemorySource
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import FailureReason, Outcome, TrialStatus
from autopeft.evaluate.artefact import RECORD
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.peaks import AllocatorMeter, TrackedMeter
from autopeft.evaluate.pipeline import TorchEvaluator, open_evaluator
from autopeft.evaluate.pruning.criteria import DEFAULTS
from autopeft.evaluate.untouched import Untouched
from tests.unit import evaluate_trials
from tests.unit.evaluate_models import candidate_of, save_model, write_data
from tests.unit.policy_runs import policy_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(autouse=True)
def whole_gpu() -> Iterator[None]:
    """Undo the memory limit that a test sets for this process."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def opened(folder: Path, **changes: Any) -> TorchEvaluator:
    if not (folder / "bert").exists():
        save_model(folder / "bert")
    spec = SearchSpec.model_validate(
        {
            "model": str(folder / "bert"),
            "data": write_data(folder / "data"),
            "training": {"steps": 12, "batch_size": 16},
            **changes,
        }
    )
    return open_evaluator(spec.model_dump(mode="json"), device="cuda")


def run(evaluator: TorchEvaluator, folder: Path, number: int, **changes: Any) -> Outcome:
    task = EvaluationTask(
        number=number,
        attempt=0,
        seed=3,
        candidate=candidate_of(evaluator._bench.layout, **changes),
        artefact_dir=str(folder / str(number)),
    )
    evaluation = evaluator.evaluate([task])
    try:
        next(evaluation)
        while True:
            evaluation.send(frozenset())
    except StopIteration as end:
        found: Outcome = end.value[number]
        return found


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa"])
def test_peaks_are_the_allocators_and_the_model_is_restored(tmp_path: Path, variant: str) -> None:
    evaluator = opened(tmp_path)
    ballast = torch.zeros(1 << 28, device="cuda")  # a peak before the trial is no part of it
    del ballast
    outcome = run(evaluator, tmp_path, 0, variant=variant)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    found = outcome.measurements
    assert found is not None
    for peak in (found.train_peak, found.infer_peak):
        assert peak is not None
        assert peak.source is MemorySource.CUDA_ALLOCATOR
        assert peak.reserved_bytes is not None
        assert evaluator._bench.layout.weights_bytes < peak.live_bytes <= peak.reserved_bytes
        assert peak.live_bytes < 1 << 29
    assert found.dtype == "float32, bfloat16 autocast"
    assert found.device == torch.cuda.get_device_name()
    assert not outcome.recycle_worker
    assert evaluator._bench.untouched.differences() == []
    assert evaluator.score_test(tmp_path / "0")["accuracy"] >= 0


def test_two_runs_of_one_task_have_the_same_peak(tmp_path: Path) -> None:
    evaluator = opened(tmp_path)
    peaks = [run(evaluator, tmp_path, number, layers=(2,)).measurements.train_peak for number in (0, 1)]  # type: ignore[union-attr]
    assert peaks[0] is not None
    assert peaks[1] is not None
    assert peaks[0].live_bytes == pytest.approx(peaks[1].live_bytes, rel=0.01)


def training_peak(device: str, layers: tuple[int, ...]) -> int:
    """Peak of the second step of a model that is large enough for the allocator's rounding not to matter."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    # The plain attention, because the fused kernels of the two devices save different tensors.
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").to(device)
    layout = inspect_layout(model)
    candidate = candidate_of(layout, layers=layers, rank=8)
    inserted = insert(Untouched(model), candidate, layout, 0).model.train()
    parameters = [part for part in inserted.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=False)
    meter = AllocatorMeter(torch.device(device)) if device == "cuda" else TrackedMeter({1}, inserted, optimizer)
    inputs = {
        "input_ids": torch.randint(5, 1000, (16, 128)).to(device),
        "attention_mask": torch.ones(16, 128, dtype=torch.long).to(device),
        "labels": torch.zeros(16, dtype=torch.long).to(device),
    }
    for step in range(2):
        with meter.step(step):
            meter.add(inputs.values())
            inserted(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    peak = meter.peak()
    assert peak is not None
    return peak.live_bytes


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (3,)])
def test_the_tracker_agrees_with_the_allocator_within_a_few_percent(layers: tuple[int, ...]) -> None:
    training_peak("cuda", layers)  # makes the workspaces of the matrix library, which the tracker cannot see
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    allocated = training_peak("cuda", layers) - before
    assert training_peak("cpu", layers) == pytest.approx(allocated, rel=0.05)


def test_a_trial_that_fits_runs_after_one_that_did_not(tmp_path: Path) -> None:
    # Wide enough that the activations do not fit into what the allocator holds already.
    save_model(tmp_path / "bert", hidden_size=256, intermediate_size=1024)
    evaluator = opened(tmp_path)
    rest = run(evaluator, tmp_path, 0)
    assert rest.status is TrialStatus.COMPLETE
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 20)) / total)
    outcome = run(evaluator, tmp_path, 1)
    assert outcome.status is TrialStatus.INFEASIBLE, outcome.failure
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.OUT_OF_MEMORY
    assert outcome.recycle_worker
    torch.cuda.set_per_process_memory_fraction(1.0)
    again = run(evaluator, tmp_path, 2)
    assert again.status is TrialStatus.COMPLETE
    assert again.measurements is not None
    assert rest.measurements is not None
    assert again.measurements.first_losses[0] == pytest.approx(rest.measurements.first_losses[0], rel=1e-3)
    assert evaluator._bench.untouched.differences() == []


def test_a_worker_cannot_fill_more_than_its_share(tmp_path: Path) -> None:
    spec = opened(tmp_path)._bench.spec.model_dump(mode="json")
    evaluator = open_evaluator(spec, device="cuda", gpu_share=0.25)
    assert run(evaluator, tmp_path, 0).status is TrialStatus.COMPLETE
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(int(0.3 * total), dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_precision_base_trains_its_head_in_float32(tmp_path: Path, dtype: str) -> None:
    evaluator = opened(tmp_path, model={"source": str(tmp_path / "bert"), "dtype": dtype})
    outcome = run(evaluator, tmp_path, 0)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert outcome.measurements.dtype == f"{dtype}, bfloat16 autocast"
    head = evaluator._bench.model.get_submodule(evaluator._bench.layout.head_paths[0])
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


def test_a_peak_above_the_limit_is_infeasible(tmp_path: Path) -> None:
    needed = run(opened(tmp_path), tmp_path, 0).measurements
    assert needed is not None
    assert needed.train_peak is not None
    outcome = run(opened(tmp_path, max_memory=int(needed.train_peak.live_bytes * 0.8)), tmp_path, 1)
    assert outcome.status is TrialStatus.INFEASIBLE
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.OVER_LIMIT
    assert outcome.failure.violation is not None
    assert outcome.failure.violation > 0


def test_what_a_seed_draws_is_the_same_on_the_gpu(tmp_path: Path) -> None:
    spec = evaluate_trials.spec_of(tmp_path, training={"steps": 12})
    found = []
    for number, device in enumerate(("cpu", "cuda")):
        evaluator = open_evaluator(spec.model_dump(mode="json"), device=device)
        task = evaluate_trials.task_of(evaluator, tmp_path, number, dropout=0.0)
        pruning = Pruning(criterion="random", settings={**DEFAULTS, "heads": 0.5, "modules": 0.3})
        policy = policy_of("ist", interval=2, trained=0.34)
        candidate = task.candidate.model_copy(update={"pruning": pruning, "policy": policy})
        outcome, _ = evaluate_trials.run(evaluator, task.model_copy(update={"candidate": candidate}))
        assert outcome.status is TrialStatus.COMPLETE, outcome.failure
        assert outcome.measurements is not None
        pruned = json.loads((tmp_path / f"artefact-{number}" / RECORD).read_text())["pruning"]
        found.append((pruned, [step for step, _ in outcome.measurements.layer_scores]))
    assert found[0] == found[1]
