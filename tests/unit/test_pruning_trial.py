"""A trial that prunes: phases measured apart, true counts, a winner that reloads, and no trace for the next trial."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Insertion, Policy, Pruning
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import FailureReason, Outcome, TrialStatus
from autopeft.evaluate.artefact import RECORD, load_adapter
from autopeft.evaluate.data.batches import plan
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning.counts import kept_peft_parameters, lost_block_parameters
from autopeft.evaluate.pruning.criteria import DEFAULTS
from autopeft.evaluate.pruning.phase import Estimation, apply
from autopeft.evaluate.pruning.record import folded_tensors, from_record, to_record
from autopeft.evaluate.pruning.wiring import Wiring
from autopeft.evaluate.train import Training
from autopeft.evaluate.untouched import removed_afterwards
from tests.unit.causal_models import lora_of
from tests.unit.evaluate_trials import opened, run, spec_of, task_of
from tests.unit.test_causal_trial import spec_of as language_spec

STEPS = 20
SETTINGS = {**DEFAULTS, "heads": 0.25, "modules": 0.5, "estimation": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pruning")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[TorchEvaluator]:
    """One evaluator for many tests, as a worker has; each test must find it untouched."""
    evaluator = opened(spec_of(folder, training={"steps": STEPS}))
    yield evaluator
    assert evaluator._bench.untouched.differences() == []
    evaluator.close()


def pruned(
    evaluator: TorchEvaluator, folder: Path, number: int = 0, criterion: str = "light-peft", **settings: Any
) -> EvaluationTask:
    task = task_of(evaluator, folder, number, dropout=0.0)
    pruning = Pruning(criterion=criterion, settings={**SETTINGS, **settings})
    return task.model_copy(update={"candidate": task.candidate.model_copy(update={"pruning": pruning})})


def comparable(outcome: Outcome) -> dict[str, Any]:
    """What must repeat: everything but clocks."""
    assert outcome.measurements is not None
    found = outcome.measurements.model_dump()
    for key in ("train_s", "evaluate_s", "latency_s", "setup_s", "estimation_s", "pruning_s"):
        del found[key]
    found["rungs"] = [{**rung, "train_s": 0, "evaluate_s": 0} for rung in found["rungs"]]
    return found


def test_a_trial_measures_its_phases_apart(shared: TorchEvaluator, tmp_path: Path) -> None:
    task = pruned(shared, tmp_path)
    outcome, rungs = run(shared, task)
    found, layout = outcome.measurements, shared._bench.layout
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert not outcome.recycle_worker
    assert found is not None
    assert [(rung.step, rung.planned_steps) for rung in rungs] == [(10, 20), (20, 20)]
    assert (found.steps, found.planned_steps, len(found.first_losses)) == (20, 20, 20)
    record = json.loads((tmp_path / "artefact-0" / RECORD).read_text())
    decision = from_record(record["pruning"], {}).decision
    peft = kept_peft_parameters(task.candidate.insertions, layout, decision)
    assert found.trainable_parameters == peft + layout.head_parameters
    assert found.kept_parameters == layout.parameters - lost_block_parameters(layout, decision) + peft
    assert found.total_parameters is not None
    assert found.total_parameters > layout.parameters > found.kept_parameters
    assert len(found.inserted_modules) == len(decision.ranks) <= 9
    for seconds in (found.estimation_s, found.pruning_s, found.latency_s):
        assert seconds is not None
        assert 0 < seconds < outcome.seconds
    assert found.train_s is not None
    assert found.estimation_s is not None
    assert found.estimation_s < found.train_s
    assert found.estimation_peak is not None
    assert found.train_peak is not None
    assert found.infer_peak is not None
    assert found.estimation_peak.live_bytes > found.train_peak.live_bytes > found.infer_peak.live_bytes
    plain, _ = run(shared, task_of(shared, tmp_path, 1, dropout=0.0))
    assert plain.measurements is not None
    for name in ("train_peak", "infer_peak"):
        assert getattr(found, name).live_bytes < getattr(plain.measurements, name).live_bytes
    assert found.estimation_peak.live_bytes > plain.measurements.train_peak.live_bytes, "masks take memory"
    assert found.copied_bytes is not None
    assert 0 < found.copied_bytes < layout.weights_bytes
    assert shared.score_test(tmp_path / "artefact-0")["accuracy"] > 0


def test_a_saved_winner_has_the_validation_score_of_the_trial(shared: TorchEvaluator, tmp_path: Path) -> None:
    for number, masks in enumerate(("discard", "fold")):
        task = pruned(shared, tmp_path, number, masks=masks, penalty=0.01)
        outcome, _ = run(shared, task)
        bench = shared._bench
        with removed_afterwards(bench.untouched):
            model = load_adapter(bench.model, Path(task.artefact_dir), bench.untouched)
            scored = bench.validation.score(model, bench.device, bench.dtype)
        assert outcome.measurements is not None
        assert scored.quality == outcome.measurements.quality
        assert bench.untouched.differences() == []


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["light-peft", "random", "magnitude"])
def test_the_same_task_gives_the_same_numbers_whatever_ran_in_between(
    shared: TorchEvaluator, tmp_path: Path, criterion: str
) -> None:
    first, _ = run(shared, pruned(shared, tmp_path, 0, criterion))
    run(shared, pruned(shared, tmp_path, 1, "random", heads=0.5))
    torch.rand(7)
    again, _ = run(shared, pruned(shared, tmp_path, 2, criterion))
    assert comparable(first) == comparable(again)
    weights = [(tmp_path / f"artefact-{number}" / "adapter_model.safetensors").read_bytes() for number in (0, 2)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("estimation", "phase"), [(0.9, "estimation"), (0.1, "training")])
def test_a_trial_that_is_stopped_leaves_the_base_as_it_was(
    shared: TorchEvaluator, tmp_path: Path, estimation: float, phase: str
) -> None:
    outcome, _ = run(shared, pruned(shared, tmp_path, estimation=estimation), stop=lambda rung: rung.step == 10)
    assert outcome.status is TrialStatus.STOPPED_EARLY
    assert outcome.measurements is not None
    assert (outcome.measurements.kept_parameters is None) == (phase == "estimation")
    assert (outcome.measurements.train_peak is None) == (phase == "estimation")
    assert not outcome.recycle_worker
    assert shared._bench.untouched.differences() == []


def test_an_exception_in_the_pruning_step_is_a_crash_that_leaves_the_base_as_it_was(
    shared: TorchEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr("autopeft.evaluate.pruning.surgery._Surgery.drop_ranks", broken)
    outcome, _ = run(shared, pruned(shared, tmp_path))
    assert outcome.status is TrialStatus.CRASHED
    assert outcome.failure is not None
    assert outcome.failure.reason is FailureReason.EXCEPTION
    assert shared._bench.untouched.differences() == []


def test_a_candidate_that_cannot_be_pruned_fails_before_it_trains(shared: TorchEvaluator, tmp_path: Path) -> None:
    outcome, rungs = run(shared, pruned(shared, tmp_path, heads=0.9))
    assert outcome.status is TrialStatus.CRASHED
    assert outcome.failure is not None
    assert "leaves a layer none of its 4 heads" in outcome.failure.text
    assert rungs == []


def test_gradients_may_be_accumulated(folder: Path, tmp_path: Path) -> None:
    evaluator = opened(spec_of(folder, training={"steps": 8, "gradient_accumulation": 2}))
    outcome, rungs = run(evaluator, pruned(evaluator, tmp_path))
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert [rung.step for rung in rungs] == [4, 8]


def test_one_step_is_too_few_to_prune(folder: Path, tmp_path: Path) -> None:
    evaluator = opened(spec_of(folder, training={"steps": 1, "rungs": (1.0,)}))
    outcome, _ = run(evaluator, pruned(evaluator, tmp_path))
    assert outcome.failure is not None
    assert "1 is too few to estimate, prune and train" in outcome.failure.text


class Interrupted:
    """The phases of a trial by hand, each of which may be broken off and taken up on a model that was put back."""

    def __init__(self, evaluator: TorchEvaluator, task: EvaluationTask) -> None:
        self.bench, self.task = evaluator._bench, task
        batches = list(plan(self.bench.train, STEPS, task.seed))
        self.batches = {"estimation": batches[:8], "training": batches[8:]}
        self.inserted = insert(self.bench.untouched, task.candidate, self.bench.layout, task.seed)

    def estimation(self) -> Estimation:
        pruning = self.task.candidate.pruning
        assert pruning is not None
        wiring = Wiring(per_group={"num_attention_heads": 1, "all_head_size": 4})
        return Estimation(self.bench.untouched, self.inserted, pruning, wiring, seed=self.task.seed, steps=8, passes=1)

    def training(self, phase: str) -> Training:
        spec, rate = self.bench.spec.training, self.task.candidate.learning_rate
        return Training(self.inserted, self.batches[phase], spec, rate, self.bench.device, self.bench.dtype)


@pytest.mark.parametrize("criterion", ["light-peft", "magnitude"])
def test_an_interrupted_trial_goes_on_as_if_it_had_not_been(
    shared: TorchEvaluator, tmp_path: Path, criterion: str
) -> None:
    task, untouched = pruned(shared, tmp_path, 0, criterion, masks="fold"), shared._bench.untouched
    with removed_afterwards(untouched):
        whole = Interrupted(shared, task)
        estimation = whole.estimation()
        losses = [step.loss for step in whole.training("estimation").run()]
        estimation.prune()
        decided = whole.inserted.pruned
        assert decided is not None
        losses += [step.loss for step in whole.training("training").run()]
    with removed_afterwards(untouched):
        first = Interrupted(shared, task)
        estimation, training = first.estimation(), first.training("estimation")
        found = [step.loss for step in itertools.islice(training.run(), 6)]
        states = (estimation.state(), training.state())
        training.free()
    with removed_afterwards(untouched):
        second = Interrupted(shared, task)
        estimation, training = second.estimation(), second.training("estimation")
        estimation.load(states[0])
        training.load(states[1])
        found += [step.loss for step in training.run()]
        estimation.prune()
        assert second.inserted.pruned is not None
        assert second.inserted.pruned.decision == decided.decision
        record, masks = to_record(second.inserted.pruned), folded_tensors(second.inserted.pruned)
        training = second.training("training")
        found += [step.loss for step in itertools.islice(training.run(), 5)]
        state = training.state()
    with removed_afterwards(untouched):
        third = Interrupted(shared, task)
        apply(untouched, third.inserted, from_record(record, masks))
        training = third.training("training")
        training.load(state)
        found += [step.loss for step in training.run()]
    assert found == losses


@pytest.mark.parametrize("policy", ["ist", "lisa"])
def test_a_policy_trains_the_layers_of_the_pruned_model(shared: TorchEvaluator, tmp_path: Path, policy: str) -> None:
    task = pruned(shared, tmp_path)
    chosen = Policy(name=policy, settings=dict(POLICIES[policy].facts.defaults))
    task = task.model_copy(update={"candidate": task.candidate.model_copy(update={"policy": chosen})})
    outcome, _ = run(shared, task)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert shared._bench.untouched.differences() == []


@pytest.mark.parametrize("method", ["serial", "parallel"])
def test_adapters_are_pruned_too(shared: TorchEvaluator, tmp_path: Path, method: str) -> None:
    task = pruned(shared, tmp_path)
    adapter = Insertion(
        method=method,
        layers=(0, 1, 2),
        modules=("attention.output", "ffn.out"),
        settings={"size": 4, "scale": 1.0, "activation": "relu"},
    )
    task = task.model_copy(update={"candidate": task.candidate.model_copy(update={"insertions": (adapter,)})})
    outcome, _ = run(shared, task)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert len(outcome.measurements.inserted_modules) <= 3


def test_the_head_alone_can_be_trained_on_a_pruned_backbone(shared: TorchEvaluator, tmp_path: Path) -> None:
    task = pruned(shared, tmp_path)
    task = task.model_copy(update={"candidate": task.candidate.model_copy(update={"insertions": ()})})
    outcome, _ = run(shared, task)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert outcome.measurements is not None
    assert outcome.measurements.trainable_parameters == outcome.measurements.head_parameters == 34
    assert shared.score_test(tmp_path / "artefact-0")["accuracy"] > 0


@pytest.mark.slow
def test_a_language_model_is_pruned_and_still_writes(tmp_path: Path) -> None:
    evaluator = opened(language_spec(tmp_path, data={"metric": "exact_match"}))
    bench = evaluator._bench
    pruning = Pruning(criterion="light-peft", settings={**SETTINGS, "heads": 0.5})
    candidate = lora_of(bench.layout).model_copy(update={"pruning": pruning})
    task = EvaluationTask(number=0, attempt=0, seed=5, candidate=candidate, artefact_dir=str(tmp_path / "0"))
    outcome, _ = run(evaluator, task)
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    with removed_afterwards(bench.untouched):
        model = load_adapter(bench.model, tmp_path / "0", bench.untouched)
        scored = bench.validation.score(model, bench.device, bench.dtype)
    assert outcome.measurements is not None
    assert scored.quality == outcome.measurements.quality
    assert bench.untouched.differences() == []


def test_ordinary_half_precision_weights_can_be_cut(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": "bfloat16"})})
    evaluator = opened(spec)
    outcome, _ = run(evaluator, pruned(evaluator, tmp_path, masks="fold"))
    assert outcome.status is TrialStatus.COMPLETE, outcome.failure
    assert evaluator._bench.untouched.differences() == []
