"""Every method goes through a whole trial on a half-precision base, and its saved adapter scores.

On the CPU with an encoder; where there is a GPU also there, with a decoder as well.
"""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path

import pytest
import torch

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.domain.measurements import MemorySource
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.artefact import save_adapter
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.loading import load_adapter
from autopeft.evaluate.methods import METHODS, Calibration
from autopeft.evaluate.pipeline import TorchEvaluator, open_evaluator
from autopeft.evaluate.train import autocast, moved
from autopeft.evaluate.untouched import removed_afterwards
from tests.contract.method_runs import fitting
from tests.unit.evaluate_models import save_model, write_data
from tests.unit.evaluate_trials import run

MIX = ("lora", "parallel", "prefix")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(
    scope="module",
    params=[("bert", "cpu"), pytest.param(("bert", "cuda"), marks=GPU), pytest.param(("llama", "cuda"), marks=GPU)],
    ids="-".join,
)
def evaluator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchEvaluator:
    kind, device = request.param
    folder = tmp_path_factory.mktemp(kind)
    save_model(folder / "model", kind, hidden_size=64, intermediate_size=128, vocab_size=64)
    spec = SearchSpec.model_validate(
        {
            "model": {"source": str(folder / "model"), "dtype": "bfloat16"},
            "data": write_data(folder / "data"),
            "training": {"steps": 6, "batch_size": 8},
        }
    )
    made = open_evaluator(spec.model_dump(mode="json"), device=device)
    gc.freeze()  # every removal collects garbage, which would look through all that the libraries loaded
    return made


def insertion_of(name: str, layout: ModelLayout) -> Insertion:
    found = fitting(name, layout, tuple(range(len(layout.layers))))
    if problems := METHODS[name].problems(found, layout):
        pytest.skip(f"{name} does not fit: {problems[0].found}")
    return found


@pytest.mark.parametrize("names", [*((name,) for name in METHODS), MIX], ids="+".join)
def test_the_saved_adapter_is_what_was_trained_where_it_is_said_to_be(
    evaluator: TorchEvaluator, tmp_path: Path, names: tuple[str, ...]
) -> None:
    bench = evaluator._bench
    candidate = Candidate(insertions=tuple(insertion_of(name, bench.layout) for name in names), learning_rate=1e-2)
    computing = partial(autocast, bench.device, bench.dtype)
    inputs = [moved(one, bench.device) for one in bench.train[:4]]
    asked = {key: value for key, value in inputs[0].items() if key != "labels"}
    with removed_afterwards(bench.untouched):
        calibration = Calibration(inputs, computing)
        inserted = insert(bench.untouched, candidate, bench.layout, 0, steps=4, calibration=calibration)
        optimizer = inserted.optimizer(1e-2, 0.0)
        for step, one in enumerate(inputs):
            inserted.model.train()
            with computing():
                loss = inserted.model(**one).loss
            loss.backward()
            inserted.before_update()
            optimizer.step()
            inserted.after_step(step + 1)
            optimizer.zero_grad()
        inserted.model.eval()
        with torch.no_grad(), computing():
            live = inserted.model(**asked).logits
        save_adapter(inserted, tmp_path / "adapter")
        exactly = inserted.saved_exactly
        del inserted, optimizer, loss
    with removed_afterwards(bench.untouched):
        loaded = load_adapter(bench.model, tmp_path / "adapter", bench.untouched)
        with torch.no_grad(), computing():
            again = loaded(**asked).logits
        del loaded
    assert bench.untouched.differences() == []
    assert torch.equal(live, again) == exactly


@pytest.mark.parametrize("names", [*((name,) for name in METHODS), MIX], ids="+".join)
def test_it_trains_leaves_no_trace_and_scores(
    evaluator: TorchEvaluator, tmp_path: Path, names: tuple[str, ...]
) -> None:
    layout = evaluator._bench.layout
    insertions = tuple(insertion_of(name, layout) for name in names)
    task = EvaluationTask(
        number=0,
        attempt=0,
        seed=3,
        candidate=Candidate(insertions=insertions, learning_rate=1e-3),
        artefact_dir=str(tmp_path / "adapter"),
    )
    outcome, _ = run(evaluator, task)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert not outcome.recycle_worker
    measured = outcome.measurements
    assert measured is not None
    assert measured.train_peak is not None
    on_gpu = evaluator._device.type == "cuda"
    assert measured.train_peak.source is (MemorySource.CUDA_ALLOCATOR if on_gpu else MemorySource.TRACKED)
    expected = sum(METHODS[one.method].trainable(one, layout) for one in insertions) + layout.head_parameters
    assert layout.head_parameters < measured.trainable_parameters <= expected
    exactly = all(METHODS[one.method].exact_count for one in insertions)
    assert measured.trainable_parameters == expected or not exactly
    scores = evaluator.score_test(tmp_path / "adapter")
    assert 0.0 <= scores["accuracy"] <= 1.0
    assert evaluator._bench.untouched.differences() == []
