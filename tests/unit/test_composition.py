"""Several insertions in one model: each trains what it would alone, nothing else moves, and it all comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import autopeft
from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.errors import UserError
from autopeft.evaluate.artefact import RECORD, WEIGHTS, save_adapter
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from tests.unit.evaluate_models import batch, classifier_of
from tests.unit.test_evaluate_insertion import assert_same, state_of, train_two_steps

SETTINGS: dict[str, Any] = {"rank": 4, "alpha_ratio": 2.0, "dropout": 0.0}
QV = ("attention.query", "attention.value")


def of(method: str, layers: tuple[int, ...], modules: tuple[str, ...], **changes: Any) -> Insertion:
    return Insertion(method=method, layers=layers, modules=modules, settings={**SETTINGS, **changes})


MIXES = {
    "bert": (of("lora", (0, 1), QV), of("dora", (1, 2), ("ffn.out",), rank=2)),
    "distilbert": (of("lora", (0, 1), QV), of("rslora", (0, 1), ("ffn.in",), rank=2)),
    "llama": (of("lora", (0, 1), QV), of("dora", (0, 2), ("ffn.gate", "ffn.in"))),
    "gpt2": (of("lora", (0,), ("attention.qkv",)), of("lora", (1, 2), ("attention.qkv",), rank=2)),
}


def mixed(kind: str) -> tuple[Any, Candidate]:
    return classifier_of(kind).requires_grad_(False), Candidate(insertions=MIXES[kind], learning_rate=1e-2)


@pytest.mark.parametrize("kind", list(MIXES))
def test_a_mix_trains_the_sum_of_its_parts_and_nothing_else(kind: str) -> None:
    model, candidate = mixed(kind)
    logits = model(**batch()).logits
    layout, untouched, before = inspect_layout(model), Untouched(model), state_of(model)
    base = {name: part.detach().clone() for name, part in model.named_parameters()}
    with removed_afterwards(untouched):
        inserted = insert(untouched, candidate, layout, 3)
        assert torch.equal(inserted.model(**batch()).logits, logits), "LoRA and DoRA start as nothing"
        parts = sum(METHODS[one.method].trainable(one, layout) for one in candidate.insertions)
        assert sum(part.numel() for part in inserted.trainable()) == parts + layout.head_parameters
        assert inserted.head_parameters() == layout.head_parameters
        expected = {path for one in candidate.insertions for path in layout.paths(one.layers, one.modules)}
        assert set(inserted.module_names) == expected
        train_two_steps(inserted.model)
        assert not torch.equal(inserted.model(**batch()).logits, logits)
        frozen = {name.replace(".base_layer", ""): part for name, part in model.named_parameters()}
        for name, values in base.items():
            if not name.startswith(layout.head_paths):
                assert torch.equal(frozen[name], values), name
    assert untouched.differences() == []
    assert_same(before, state_of(model))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_saved_mix_gives_the_same_logits_on_a_fresh_model(kind: str, tmp_path: Path) -> None:
    model, candidate = mixed(kind)
    inserted = insert(Untouched(model), candidate, inspect_layout(model), 3)
    train_two_steps(inserted.model)
    inserted.model.eval()
    weights = save_adapter(inserted, tmp_path / "mix")
    assert weights == (tmp_path / "mix" / WEIGHTS).stat().st_size
    record = json.loads((tmp_path / "mix" / RECORD).read_text())
    assert [one["method"] for one in record["insertions"]] == [one.method for one in candidate.insertions]
    loaded = autopeft.load_adapter(classifier_of(kind), tmp_path / "mix")
    for seed in range(3):
        assert torch.equal(loaded(**batch(seed)).logits, inserted.model(**batch(seed)).logits)
    assert not any(part.requires_grad for part in loaded.parameters())


def test_an_adapter_of_one_method_of_peft_loads_the_same_way(tmp_path: Path) -> None:
    model = classifier_of("bert").requires_grad_(False)
    candidate = Candidate(insertions=MIXES["bert"][:1], learning_rate=1e-2)
    inserted = insert(Untouched(model), candidate, inspect_layout(model), 3)
    train_two_steps(inserted.model)
    save_adapter(inserted, tmp_path / "one")
    ours, theirs = autopeft.load_adapter(classifier_of("bert"), str(tmp_path / "one")), classifier_of("bert")
    plain = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "one"))
    assert torch.equal(ours(**batch()).logits, plain(**batch()).logits)


def test_an_adapter_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    model, candidate = mixed("bert")
    save_adapter(insert(Untouched(model), candidate, inspect_layout(model), 3), tmp_path / "mix")
    with pytest.raises(autopeft.AdapterError, match="attention"):
        autopeft.load_adapter(classifier_of("gpt2"), tmp_path / "mix")
    with pytest.raises(autopeft.AdapterError, match="no adapter"):
        autopeft.load_adapter(classifier_of("bert"), tmp_path)


def test_two_insertions_in_one_linear_are_refused_with_both_names() -> None:
    model = classifier_of("bert")
    twice = Candidate(insertions=(of("lora", (0, 1), QV), of("dora", (1,), QV[:1])), learning_rate=1e-3)
    with pytest.raises(UserError, match=r"lora and dora both take bert\.encoder\.layer\.1\.attention\.self\.query"):
        insert(Untouched(model), twice, inspect_layout(model), 0)


def test_mixes_on_one_model_equal_mixes_on_fresh_ones() -> None:
    shared, candidate = mixed("bert")
    layout, untouched = inspect_layout(shared), Untouched(shared)
    losses = []
    for _ in range(2):
        with removed_afterwards(untouched):
            inserted = insert(untouched, candidate, layout, 5)
            train_two_steps(inserted.model)
            losses.append(inserted.model(**batch(9)).loss.item())
    assert losses[0] == losses[1]


def test_a_method_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, candidate = mixed("bert")

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("half way")

    monkeypatch.setattr(METHODS["dora"], "config", broken)
    before, untouched = state_of(model), Untouched(model)
    with pytest.raises(RuntimeError, match="dora: ZeroDivisionError: half way"), removed_afterwards(untouched):
        insert(untouched, candidate, inspect_layout(model), 0)
    assert_same(before, state_of(model))


def test_a_model_that_an_adapter_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    model, candidate = mixed("bert")
    save_adapter(insert(Untouched(model), candidate, inspect_layout(model), 3), tmp_path / "mix")
    other = classifier_of("bert", intermediate_size=20)
    before = state_of(other)
    with pytest.raises(autopeft.AdapterError, match="does not fit"):
        autopeft.load_adapter(other, tmp_path / "mix")
    assert_same(before, state_of(other))
