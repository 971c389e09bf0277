"""The evaluator: true numbers, outcomes instead of exceptions, and no trace of one trial in the next."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from scipy.stats import spearmanr

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import UserError
from autopeft.domain.measurements import MemorySource
from autopeft.domain.trial import CHECKPOINT, FailureReason, Outcome, TrialStatus
from autopeft.evaluate import trial_run
from autopeft.evaluate.data.batches import plan
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.tasks import classification
from tests.unit.evaluate_models import write_data
from tests.unit.evaluate_trials import STEPS, opened, run, spec_of, task_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[TorchEvaluator]:
    """One evaluator for many tests, as a worker has; each test must find it untouched."""
    evaluator = opened(spec_of(folder))
    yield evaluator
    assert evaluator._bench.untouched.differences() == []
    evaluator.close()


def comparable(outcome: Outcome) -> dict[str, Any]:
    """What must repeat: everything but clocks."""
    assert outcome.measurements is not None
    found = outcome.measurements.model_dump()
    for key in ("train_s", "evaluate_s", "latency_s", "setup_s"):
        del found[key]
    found["rungs"] = [{**rung, "train_s": 0, "evaluate_s": 0} for rung in found["rungs"]]
    return found


def test_a_trial_reports_its_rungs_and_measures_everything(shared: TorchEvaluator, tmp_path: Path) -> None:
    task = task_of(shared, tmp_path)
    outcome, rungs = run(shared, task)
    found = outcome.measurements
    assert outcome.status is TrialStatus.COMPLETE
    assert outcome.failure is None
    assert not outcome.recycle_worker
    assert found is not None
    assert [(rung.step, rung.planned_steps, rung.fidelity) for rung in rungs] == [(12, 24, 0.5), (24, 24, 1.0)]
    assert found.rungs == tuple(rungs)
    assert found.quality == rungs[-1].quality
    assert found.quality.keys() == {"accuracy", "f1", "matthews"}
    assert (found.steps, found.planned_steps, len(found.first_losses)) == (24, 24, 20)
    assert rungs[0].train_loss == pytest.approx(math.fsum(found.first_losses[:12]) / 12)
    batches = list(plan(shared._bench.train, STEPS, task.seed))
    assert found.train_tokens == sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    for seconds in (found.train_s, found.evaluate_s, found.latency_s, found.setup_s):
        assert seconds is not None
        assert 0 < seconds < outcome.seconds
    weights = tmp_path / "artefact-0" / "adapter_model.safetensors"
    assert found.adapter_bytes == weights.stat().st_size
    assert (found.device, found.dtype) == ("cpu", "float32")
    layout = shared._bench.layout
    assert set(found.inserted_modules) == {module.path for layer in layout.layers for module in layer.modules}
    per_layer = sum(4 * (module.in_features + module.out_features) for module in layout.layers[0].modules)
    assert found.head_parameters == 16 * 2 + 2
    assert found.trainable_parameters == 3 * per_layer + 34
    assert found.train_peak is not None
    assert found.infer_peak is not None
    assert found.train_peak.source is found.infer_peak.source is MemorySource.TRACKED
    assert found.train_peak.live_bytes > found.infer_peak.live_bytes > layout.weights_bytes


def test_the_head_alone_can_be_trained(shared: TorchEvaluator, tmp_path: Path) -> None:
    task = task_of(shared, tmp_path).model_copy(update={"candidate": Candidate(insertions=(), learning_rate=1e-2)})
    outcome, _ = run(shared, task)
    assert outcome.status is TrialStatus.COMPLETE
    assert outcome.measurements is not None
    assert outcome.measurements.trainable_parameters == outcome.measurements.head_parameters == 34
    assert outcome.measurements.inserted_modules == ()
    assert shared.score_test(tmp_path / "artefact-0")["accuracy"] > 0


def test_the_same_task_gives_the_same_numbers_whatever_ran_in_between(shared: TorchEvaluator, tmp_path: Path) -> None:
    first, _ = run(shared, task_of(shared, tmp_path, 0))
    run(shared, task_of(shared, tmp_path, 1, seed=5, variant="pissa", learning_rate=0.1))
    run(shared, task_of(shared, tmp_path, 2, seed=6, variant="dora", layers=(2,)))
    torch.rand(7)
    again, _ = run(shared, task_of(shared, tmp_path, 3))
    assert comparable(first) == comparable(again)
    weights = [(tmp_path / f"artefact-{number}" / "adapter_model.safetensors").read_bytes() for number in (0, 3)]
    assert weights[0] == weights[1]


def test_a_second_worker_gets_the_same_numbers(folder: Path, shared: TorchEvaluator, tmp_path: Path) -> None:
    first, _ = run(shared, task_of(shared, tmp_path, 0))
    second, _ = run(opened(spec_of(folder)), task_of(shared, tmp_path, 1))
    assert comparable(first) == comparable(second)


def test_another_seed_gives_other_losses(shared: TorchEvaluator, tmp_path: Path) -> None:
    first, _ = run(shared, task_of(shared, tmp_path, 0))
    other, _ = run(shared, task_of(shared, tmp_path, 1, seed=12))
    assert first.measurements is not None
    assert other.measurements is not None
    assert first.measurements.first_losses != other.measurements.first_losses


def test_a_trial_that_is_told_to_stop_stops_and_leaves_its_checkpoint(shared: TorchEvaluator, tmp_path: Path) -> None:
    outcome, rungs = run(shared, task_of(shared, tmp_path), stop=lambda rung: rung.step == 12)
    assert outcome.status is TrialStatus.STOPPED_EARLY
    assert outcome.measurements is not None
    assert (outcome.measurements.steps, len(rungs)) == (12, 1)
    assert outcome.measurements.adapter_bytes is None
    assert [path.name for path in (tmp_path / "artefact-0").iterdir()] == [CHECKPOINT]


def test_a_stop_at_the_last_rung_comes_too_late(shared: TorchEvaluator, tmp_path: Path) -> None:
    outcome, _ = run(shared, task_of(shared, tmp_path), stop=lambda rung: rung.step == STEPS)
    assert outcome.status is TrialStatus.COMPLETE


class Breaks:
    """A forward pass that raises in one of the steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: int) -> None:
        self.calls, original = 0, peft.PeftModelForSequenceClassification.forward

        def forward(model: Any, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == step:
                raise error
            return original(model, *arguments, **named)

        monkeypatch.setattr(peft.PeftModelForSequenceClassification, "forward", forward)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError("no more"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_is_infeasible_and_asks_for_a_new_worker(
    shared: TorchEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Breaks(monkeypatch, error, 3)
    outcome, _ = run(shared, task_of(shared, tmp_path, variant="pissa"))
    assert outcome.status is TrialStatus.INFEASIBLE
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.OUT_OF_MEMORY
    assert outcome.recycle_worker
    assert outcome.measurements is not None
    assert outcome.measurements.steps == 2
    assert shared._bench.untouched.differences() == []


def test_an_exception_is_a_crash_with_its_traceback(
    shared: TorchEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = run(shared, task_of(shared, tmp_path, 0))
    with monkeypatch.context() as patch:
        Breaks(patch, ZeroDivisionError("by hand"), 5)
        outcome, _ = run(shared, task_of(shared, tmp_path, 1, variant="pissa"))
    assert outcome.status is TrialStatus.CRASHED
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.EXCEPTION
    assert outcome.failure.text == "method pissa: ZeroDivisionError: by hand"
    assert "in forward" in outcome.failure.detail
    assert not (tmp_path / "artefact-1").exists()
    after, _ = run(shared, task_of(shared, tmp_path, 2))
    assert comparable(before) == comparable(after)


def test_a_candidate_that_does_not_fit_is_a_crash_that_says_why(shared: TorchEvaluator, tmp_path: Path) -> None:
    outcome, _ = run(shared, task_of(shared, tmp_path, rank=99))
    assert outcome.status is TrialStatus.CRASHED
    assert outcome.failure is not None
    assert "rank: 99 is larger than the smaller side" in outcome.failure.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_passes_through_after_the_model_is_restored(
    shared: TorchEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    Breaks(monkeypatch, error, 4)
    with pytest.raises(type(error)):
        run(shared, task_of(shared, tmp_path, variant="pissa"))
    assert shared._bench.untouched.differences() == []


def test_closing_a_running_evaluation_restores_the_model(shared: TorchEvaluator, tmp_path: Path) -> None:
    evaluation = shared.evaluate([task_of(shared, tmp_path, variant="dora")])
    next(evaluation)
    assert shared._bench.untouched.differences()
    evaluation.close()
    assert shared._bench.untouched.differences() == []


def test_a_loss_that_is_not_finite_ends_the_trial_as_invalid(shared: TorchEvaluator, tmp_path: Path) -> None:
    outcome, rungs = run(shared, task_of(shared, tmp_path, learning_rate=1e30))
    assert outcome.status is TrialStatus.INVALID
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.NOT_FINITE
    assert outcome.measurements is not None
    assert outcome.measurements.steps < STEPS
    assert len(rungs) <= 1


def test_a_metric_that_is_not_a_number_makes_the_trial_invalid(
    shared: TorchEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "metrics", lambda *_: {"accuracy": 0.5, "f1": math.nan, "matthews": 0.0})
    outcome, _ = run(shared, task_of(shared, tmp_path))
    assert outcome.status is TrialStatus.INVALID
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.MISSING_METRIC
    assert outcome.failure.text == "the validation f1 is nan"


def test_a_peak_above_the_limit_is_infeasible_as_soon_as_it_is_measured(
    folder: Path, shared: TorchEvaluator, tmp_path: Path
) -> None:
    free, _ = run(shared, task_of(shared, tmp_path))
    assert free.measurements is not None
    assert free.measurements.train_peak is not None
    peak = free.measurements.train_peak.live_bytes
    limit = int(peak * 0.9)
    bounded = opened(spec_of(folder, max_memory=limit))
    outcome, rungs = run(bounded, task_of(bounded, tmp_path, 1))
    assert outcome.status is TrialStatus.INFEASIBLE
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.OVER_LIMIT
    assert outcome.measurements is not None
    assert outcome.measurements.train_peak is not None
    found = outcome.measurements.train_peak.live_bytes
    assert limit < found <= peak
    assert outcome.failure.violation == pytest.approx(found / limit - 1)
    assert outcome.measurements.steps < STEPS
    assert rungs == []
    assert not outcome.recycle_worker
    fits, _ = run(bounded, task_of(bounded, tmp_path, 2, layers=(2,), modules=("attention.query",)))
    assert fits.status is TrialStatus.COMPLETE


def test_a_model_that_is_not_restored_asks_for_a_new_worker(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = opened(spec_of(folder))

    def spoils(*_: Any) -> int:
        with torch.no_grad():
            evaluator._bench.model.bert.embeddings.word_embeddings.weight[5, 3] += 1
        return 1

    monkeypatch.setattr(trial_run, "save_adapter", spoils)
    outcome, _ = run(evaluator, task_of(evaluator, tmp_path))
    assert outcome.status is TrialStatus.COMPLETE
    assert outcome.recycle_worker


def test_test_predictions_are_written_in_the_order_of_the_file(shared: TorchEvaluator, tmp_path: Path) -> None:
    run(shared, task_of(shared, tmp_path))
    scores = shared.score_test(tmp_path / "artefact-0")
    record = json.loads((tmp_path / "artefact-0" / "test_predictions.json").read_text())
    lines = Path(shared._bench.spec.data.test or "").read_text().splitlines()
    truth = [json.loads(line)["label"] for line in lines]
    assert record["rows"] == list(range(40))
    right = sum(one == other for one, other in zip(record["predictions"], truth, strict=True))
    assert scores["accuracy"] == pytest.approx(right / 40)


def test_without_a_test_split_scoring_says_so(folder: Path, tmp_path: Path) -> None:
    evaluator = opened(spec_of(folder, data={"test": None}))
    with pytest.raises(UserError, match="no test split"):
        evaluator.score_test(tmp_path)


def test_a_regression_is_trained_and_scored(folder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "scores")
    for path in data.values():
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        lines = [json.dumps({**row, "label": 0.25 + (row["label"] == "good") / 2}) for row in rows]
        Path(path).write_text("\n".join(lines) + "\n")
    evaluator = opened(spec_of(folder, data=data))
    outcome, _ = run(evaluator, task_of(evaluator, tmp_path))
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert outcome.measurements.quality.keys() == {"spearman", "pearson"}
    scores = evaluator.score_test(tmp_path / "artefact-0")
    record = json.loads((tmp_path / "artefact-0" / "test_predictions.json").read_text())
    truth = [json.loads(line)["label"] for line in Path(data["test"]).read_text().splitlines()]
    assert scores["spearman"] == pytest.approx(spearmanr(record["predictions"], truth).statistic)
