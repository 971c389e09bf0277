"""A trial that is broken off and taken up again is the trial that was not: losses, weights, scores, masks, memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopeft.domain.candidate import Candidate, Pruning, Setting
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.methods import METHODS, PeftMethod
from autopeft.evaluate.pipeline import TorchEvaluator
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning.criteria import DEFAULTS
from tests.unit.causal_models import save_language_model, write_opinions
from tests.unit.evaluate_trials import opened, spec_of, task_of
from tests.unit.interrupted_trials import check_same
from tests.unit.policy_runs import insertion_of, policy_of

STEPS = 10
PARTS = (3, 6)
"""Broken off after these; the rungs are at 5 and 10."""
SOME = {
    "ist": policy_of("ist", interval=2, probes=2, trained=0.5, score_rate=30.0),
    "random-sparse": policy_of("random-sparse", trained=0.5),
    "lisa": policy_of("lisa", layers=1, interval=2),
    "top-layers": policy_of("top-layers", layers=2),
    "gradual-unfreeze": policy_of("gradual-unfreeze", interval=2),
    "dropbp": policy_of("dropbp", drop=0.5, sensitivity_at=0.3),
}
NARROW: dict[str, dict[str, dict[str, Setting]]] = {
    "velora": {"settings": {"num_groups": 4}},
    "vblora": {"settings": {"vector_length": 4}},
    "oft": {"settings": {"oft_block_size": 4}},
    "fourierft": {"settings": {"n_frequency": 20}},
    "waveft": {"settings": {"n_frequency": 20}},
    "c3a": {"settings": {"block_size": 4}},
}
"""Sizes of methods whose usual ones are too large for a tiny model."""
PRUNING = {**DEFAULTS, "heads": 0.25, "modules": 0.4, "estimation": 0.4}
"""The first 4 of 10 steps are the estimation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resuming")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[TorchEvaluator]:
    evaluator = opened(spec_of(folder, training={"steps": STEPS}))
    yield evaluator
    evaluator.close()


def task(
    evaluator: TorchEvaluator,
    folder: Path,
    method: str = "lora",
    rate: float = 5e-3,
    settings: dict[str, Setting] | None = None,
    **more: Any,
) -> EvaluationTask:
    insertion = insertion_of(evaluator._bench.layout, method)
    dropped = {"dropout": 0.1} if "dropout" in insertion.settings else {}
    insertion = insertion.model_copy(update={"settings": {**insertion.settings, **dropped, **(settings or {})}})
    candidate = Candidate(insertions=(insertion,), learning_rate=rate, **more)
    return task_of(evaluator, folder).model_copy(update={"candidate": candidate})


TRIED = (
    "lora",
    "dora",
    "parallel",
    "prefix",
    "full",
    "adalora",
    "adamss-asa",
    "increlora",
    "spt-lora",
    "pissa",
    "lora-fa",
)


@pytest.mark.parametrize("method", TRIED)
def test_methods(monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, method: str) -> None:
    rate = 5e-4 if method == "full" else 5e-3
    check_same(monkeypatch, shared, task(shared, tmp_path, method, rate), *PARTS)


@pytest.mark.parametrize("parts", [(1, 2, 4), (5, 6)], ids=str)
def test_growing_beside_something_else(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, parts: tuple[int, ...]
) -> None:
    """Two insertions that grow, in other layers and by other rules, and an adapter: broken off at every growth."""
    layout = shared._bench.layout
    first, second = (
        insertion_of(layout, "increlora", layers).model_copy(update={"modules": modules})
        for layers, modules in (((0,), ("attention.query", "attention.value")), ((1,), ("ffn.in",)))
    )
    second = second.model_copy(update={"settings": {**second.settings, "rank": 2, "warmup": 0.2, "dropout": 0.1}})
    candidate = Candidate(insertions=(first, second, insertion_of(layout, "serial")), learning_rate=5e-3)
    asked = task_of(shared, tmp_path).model_copy(update={"candidate": candidate})
    check_same(monkeypatch, shared, asked, *parts)


def test_every_policy_is_tested_here() -> None:
    assert SOME.keys() == POLICIES.keys()


@pytest.mark.parametrize("policy", SOME)
def test_policies(monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path, policy: str) -> None:
    check_same(monkeypatch, shared, task(shared, tmp_path, policy=SOME[policy]), *PARTS)


def test_a_policy_over_what_was_chosen_by_data(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path
) -> None:
    check_same(monkeypatch, shared, task(shared, tmp_path, "spt-lora", policy=SOME["random-sparse"]), *PARTS)


def test_lisa_forgets_the_same_moments_of_a_whole_model(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path
) -> None:
    check_same(monkeypatch, shared, task(shared, tmp_path, "full", 5e-4, policy=SOME["lisa"]), *PARTS)


@pytest.mark.parametrize(
    ("criterion", "method", "masks", "policy", "parts"),
    [
        pytest.param("light-peft", "lora", "discard", None, (3,), id="in the estimation"),
        pytest.param("light-peft", "lora", "fold", None, (4,), id="at its end"),
        pytest.param("light-peft", "serial", "fold", None, (7,), id="after it"),
        pytest.param("light-peft", "lora", "discard", "ist", (3, 7), id="in both, with a policy"),
        pytest.param("random", "lora", "discard", None, (1, 8), id="random"),
        pytest.param("magnitude", "lora", "fold", None, (1, 8), id="magnitude"),
    ],
)
def test_pruning(
    monkeypatch: pytest.MonkeyPatch,
    shared: TorchEvaluator,
    tmp_path: Path,
    criterion: str,
    method: str,
    masks: str,
    policy: str | None,
    parts: tuple[int, ...],
) -> None:
    pruning = Pruning(criterion=criterion, settings={**PRUNING, "masks": masks, "penalty": 0.01})
    chosen = None if policy is None else SOME[policy]
    check_same(monkeypatch, shared, task(shared, tmp_path, method, pruning=pruning, policy=chosen), *parts)


def test_accumulated_gradients(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    evaluator = opened(spec_of(folder, training={"steps": 6, "gradient_accumulation": 2, "schedule": "cosine"}))
    pruning = Pruning(criterion="light-peft", settings=PRUNING)
    check_same(monkeypatch, evaluator, task(evaluator, tmp_path, pruning=pruning), 1, 3)


def test_breaking_off_between_a_step_and_its_rung(
    monkeypatch: pytest.MonkeyPatch, shared: TorchEvaluator, tmp_path: Path
) -> None:
    check_same(monkeypatch, shared, task(shared, tmp_path), STEPS // 2, STEPS)


def test_half_precision(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, training={"steps": 6})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": "bfloat16"})})
    check_same(monkeypatch, evaluator := opened(spec), task(evaluator, tmp_path, "pissa"), 2)


def test_a_method_that_works_after_every_step_says_what_it_keeps() -> None:
    working = [one for one in METHODS.values() if isinstance(one, PeftMethod) and overrides(one, "after_step")]
    assert {one.name for one in working} >= {"adalora", "adamss-asa"}
    assert all(overrides(one, "state") and overrides(one, "load") for one in working)


def overrides(method: PeftMethod, name: str) -> bool:
    return getattr(type(method), name) is not getattr(PeftMethod, name)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> TorchEvaluator:
    return opened(spec_of(folder, "llama", training={"steps": STEPS}))


@pytest.fixture(scope="module")
def language_model(folder: Path) -> TorchEvaluator:
    model = save_language_model(folder / "language")
    data = {**write_opinions(folder), "max_new_tokens": 2}
    training = {"steps": STEPS, "batch_size": 4, "rungs": (0.5, 1.0)}
    return opened(SearchSpec.model_validate({"model": str(model), "data": data, "training": training, "seed": 7}))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method(
    monkeypatch: pytest.MonkeyPatch,
    shared: TorchEvaluator,
    decoder: TorchEvaluator,
    language_model: TorchEvaluator,
    tmp_path: Path,
    method: str,
) -> None:
    """Also those that keep something from step to step that nobody thought of."""
    for evaluator in (shared, decoder, language_model):
        layout = evaluator._bench.layout
        asked = task(evaluator, tmp_path, method, 1e-3, **NARROW.get(method, {}))
        if not METHODS[method].problems(asked.candidate.insertions[0], layout):
            check_same(monkeypatch, evaluator, asked, 6)
            return
    pytest.fail("fits no model")
