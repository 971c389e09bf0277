"""On a GPU: predicted memory against the allocator's, phases apart, and trials that run out of memory beside others."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.measurements import MemorySource
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import TrainingSpec
from autopeft.domain.trial import FailureReason, Outcome, TrialStatus
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.forecast import Forecast
from autopeft.evaluate.memory.peaks import AllocatorMeter
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import Calibration
from autopeft.evaluate.train import Training
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from tests.gpu.test_evaluate_cuda import opened
from tests.unit.evaluate_models import candidate_of, save_model
from tests.unit.memory_models import batch, candidate, model_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

GPU = torch.device("cuda", 0)
ROWS, TOKENS, STEPS = 16, 64, 3
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "max_position_embeddings": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": WIDE,
    "llama": {**WIDE, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 256, "n_head": 4, "n_positions": 128},
}
"""Wide enough that the allocator's rounding to 512 bytes does not matter."""
CANDIDATES: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
    ("lora", (0, 1, 2, 3), {"rank": 8}),
    ("lora", (3,), {"rank": 64}),
    ("dora", (1, 2, 3), {"rank": 16}),
    ("serial", (0, 1, 2, 3), {}),
    ("prefix", (2, 3), {}),
    ("rslora", (0, 1, 2, 3), {"rank": 4}),
    ("layernorm", (1, 3), {}),
    ("ia3", (0, 1, 2, 3), {}),
    ("vera", (0, 1, 2, 3), {}),
    ("parallel", (2,), {}),
    ("lora", (0,), {"rank": 8}),
    ("full", (0, 1, 2, 3), {}),
)


@pytest.fixture(autouse=True)
def whole_gpu() -> Iterator[None]:
    """Undo the memory limit that a test sets for this process."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def allocated(kind: str, wanted: Any) -> int:
    """The allocator's peak over real steps, without what was live before the model: workspaces of the libraries."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(GPU)
    model = model_of(kind, 4, **SHAPES[kind]).to(GPU)
    layout, untouched = inspect_layout(model), Untouched(model)
    rows = batch(ROWS, TOKENS)
    shown = {**rows.inputs, "labels": rows.labels}
    calibration = Calibration(
        [{name: tensor.to(GPU) for name, tensor in shown.items()}],
        lambda: torch.autocast("cuda", dtype=torch.bfloat16),
    )
    with removed_afterwards(untouched):
        inserted = insert(untouched, wanted, layout, 3, steps=STEPS, calibration=calibration)
        del calibration
        recipe = TrainingSpec(steps=STEPS, rungs=(1.0,))
        training = Training(inserted, [rows] * STEPS, recipe, 1e-3, GPU, torch.float32, seed=3)
        for _ in training.run():
            pass
        peak = training.meter.peak()
    assert peak is not None
    assert peak.source is MemorySource.CUDA_ALLOCATOR
    return peak.live_bytes - before


def test_predicted_memory_is_the_allocators(tmp_path: Path) -> None:
    errors: dict[str, float] = {}
    for kind, sizes in SHAPES.items():
        meta = model_of(kind, 4, device="meta", **sizes)
        setup = Setup(rows=ROWS, tokens=TOKENS, padded=True, target="cuda", lower=torch.bfloat16)
        forecast = Forecast(MetaModel(meta, inspect_layout(meta)), setup, seed=3, steps=STEPS)
        fitting = [candidate(forecast.layout, method, layers, **settings) for method, layers, settings in CANDIDATES]
        allocated(kind, fitting[0])  # makes the workspaces of the matrix library, which stay
        for wanted in fitting:
            found = forecast.predict(wanted)
            assert found is not None, forecast.why_not(wanted)
            name = f"{kind} {wanted.insertions[0].method} {wanted.layers()}"
            errors[name] = found.train_peak_bytes / allocated(kind, wanted) - 1
    for name, error in sorted(errors.items(), key=lambda one: -abs(one[1])):
        print(f"{name:50} {error:+.2%}")
    sizes_of = sorted(abs(error) for error in errors.values())
    assert len(sizes_of) == len(SHAPES) * len(CANDIDATES)
    assert statistics.median(sizes_of) <= 0.03
    assert sizes_of[int(0.95 * len(sizes_of))] <= 0.08


def trained(evaluator: Any, folder: Path, number: int, layers: tuple[int, ...]) -> Outcome:
    layout = evaluator._bench.layout
    task = EvaluationTask(
        number=number,
        attempt=1,
        seed=3,
        candidate=candidate_of(layout, layers=layers, rank=8),
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


def test_ten_times_one_that_fits_after_one_that_ran_out_of_memory(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    evaluator = opened(tmp_path, training={"steps": 4, "batch_size": 96})
    small, large = (7,), tuple(range(8))
    peaks = [trained(evaluator, tmp_path, number, layers) for number, layers in enumerate((small, large))]
    assert [one.status for one in peaks] == [TrialStatus.COMPLETE] * 2, [one.failure for one in peaks]
    low, high = (one.measurements.train_peak for one in peaks)  # type: ignore[union-attr]
    assert low is not None
    assert low.reserved_bytes is not None
    assert high is not None
    assert high.live_bytes > 1.3 * low.reserved_bytes
    evaluator._release()
    limit = (low.reserved_bytes + high.live_bytes) / 2
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(GPU).total_memory)
    starts: list[int] = []
    for turn in range(10):
        for layers, status in ((large, TrialStatus.INFEASIBLE), (small, TrialStatus.COMPLETE)):
            free, total = torch.cuda.mem_get_info(GPU)
            starts.append(total - free)
            found = trained(evaluator, tmp_path, 10 + 2 * turn + (status is TrialStatus.COMPLETE), layers)
            assert found.status is status, (turn, found.failure)
            if found.failure is not None:
                assert found.failure.reason is FailureReason.OUT_OF_MEMORY
    assert max(starts) - starts[0] <= 500 << 20
    assert evaluator._bench.untouched.differences() == []


def test_every_phase_has_its_own_peaks(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", hidden_size=256, intermediate_size=1024)
    evaluator = opened(tmp_path)
    found = trained(evaluator, tmp_path, 0, (0, 1, 2)).measurements
    assert found is not None
    weights = evaluator._bench.layout.weights_bytes
    for peak in (found.load_peak, found.train_peak, found.infer_peak):
        assert peak is not None
        assert peak.source is MemorySource.CUDA_ALLOCATOR
        assert peak.reserved_bytes is not None
        assert weights <= peak.live_bytes <= peak.reserved_bytes
    assert found.train_peak is not None
    assert found.train_mean_bytes is not None
    assert weights < found.train_mean_bytes <= found.train_peak.live_bytes
    assert found.device_taken_bytes is not None
    assert found.device_taken_bytes >= 0


def test_a_new_phase_does_not_count_what_an_earlier_one_left_in_the_cache() -> None:
    ballast = torch.empty(1 << 28, dtype=torch.uint8, device=GPU)
    del ballast
    assert torch.cuda.memory_reserved(GPU) >= 1 << 28
    meter = AllocatorMeter(GPU)
    with meter.step(0):
        kept = torch.empty(1 << 20, dtype=torch.uint8, device=GPU)
    peak = meter.peak()
    assert peak is not None
    assert peak.reserved_bytes is not None
    assert peak.reserved_bytes < 1 << 27
    assert kept.numel() == 1 << 20
