"""What is proposed is what is inserted, and taking it out leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import UserError
from autopeft.evaluate.insertion import insert, module_names, peft_config
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from tests.unit.evaluate_models import LORAS, batch, candidate_of, classifier_of
from tests.unit.model_state import assert_same, state_of


def train_two_steps(model: Any) -> None:
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-2)
    for seed in range(2):
        model.train()
        model(**batch(seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


CHOICES = [
    ("bert", (0, 1, 2), None),
    ("bert", (2,), ("attention.query", "attention.value")),
    ("bert", (0, 2), ("attention.output", "ffn.out")),
    ("llama", (1, 2), None),
    ("llama", (0,), ("attention.key", "ffn.gate")),
    ("gpt2", (1, 2), ("attention.qkv", "ffn.in")),
    ("distilbert", (2,), ("attention.query", "ffn.out")),
    ("deberta-v2", (1,), ("attention.query",)),
]


@pytest.mark.parametrize("variant", LORAS)
@pytest.mark.parametrize(("kind", "layers", "modules"), CHOICES)
def test_what_is_proposed_is_what_peft_inserts_into_a_fresh_model(
    kind: str, layers: tuple[int, ...], modules: tuple[str, ...] | None, variant: str
) -> None:
    model = classifier_of(kind)
    layout = inspect_layout(model)
    candidate = candidate_of(layout, variant, layers=layers, modules=modules)
    insertion = candidate.insertions[0]
    inserted = insert(Untouched(model), candidate, layout, 3)

    plain_heads = [path for path in layout.head_paths if path not in ("classifier", "score")]
    plain = peft.get_peft_model(
        classifier_of(kind),
        peft.LoraConfig(
            task_type="SEQ_CLS",
            target_modules=list(layout.paths(insertion.layers, insertion.modules)),
            modules_to_save=plain_heads or None,
            r=4,
            lora_alpha=8,
            use_rslora=variant == "rslora",
            use_dora=variant == "dora",
            init_lora_weights="pissa" if variant == "pissa" else True,
        ),
    )
    expected = {name for name, part in plain.named_parameters() if part.requires_grad}
    found = {name for name, part in inserted.model.named_parameters() if part.requires_grad}
    assert found == expected
    assert sum(part.numel() for part in inserted.trainable()) == plain.get_nb_trainable_parameters()[0]
    assert inserted.module_names == module_names(plain.get_base_model())
    assert set(inserted.module_names) == set(layout.paths(insertion.layers, insertion.modules))
    heads = {path for path in layout.head_paths if any(f".{path}." in name for name in expected)}
    assert heads == set(layout.head_paths)


def test_a_candidate_without_insertions_trains_the_head_alone() -> None:
    model = classifier_of("distilbert")
    layout = inspect_layout(model)
    inserted = insert(Untouched(model), Candidate(insertions=(), learning_rate=1e-3), layout, 0)
    assert inserted.module_names == ()
    wrapped = [model.get_submodule(path).original_module for path in layout.head_paths]
    head = sum(part.numel() for module in wrapped for part in module.parameters())
    assert inserted.head_parameters() == head == sum(part.numel() for part in inserted.trainable())


@pytest.mark.parametrize("variant", LORAS)
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_removal_is_bit_for_bit_after_training(kind: str, variant: str) -> None:
    model = classifier_of(kind).requires_grad_(False)
    layout = inspect_layout(model)
    logits = model(**batch()).logits
    before = state_of(model)
    untouched = Untouched(model)
    with removed_afterwards(untouched):
        inserted = insert(untouched, candidate_of(layout, variant), layout, 1)
        train_two_steps(inserted.model)
        assert untouched.differences()
    assert_same(before, state_of(model))
    assert untouched.differences() == []
    assert torch.equal(model(**batch()).logits, logits)


@pytest.mark.parametrize("variant", LORAS)
def test_removal_is_bit_for_bit_after_an_exception(variant: str) -> None:
    model = classifier_of("bert").requires_grad_(False)
    layout = inspect_layout(model)
    before, untouched = state_of(model), Untouched(model)

    def train_and_break_off() -> None:
        inserted = insert(untouched, candidate_of(layout, variant), layout, 1)
        inserted.model(**batch()).loss.backward()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), removed_afterwards(untouched):
        train_and_break_off()
    assert_same(before, state_of(model))


def test_removal_undoes_an_insertion_that_broke_off_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier_of("bert").requires_grad_(False)
    layout = inspect_layout(model)
    before, untouched = state_of(model), Untouched(model)
    original, calls = peft.tuners.lora.layer.LoraLayer.pissa_init, []

    def fails_at_the_fourth(self: Any, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("broken off")
        original(self, *arguments)

    monkeypatch.setattr(peft.tuners.lora.layer.LoraLayer, "pissa_init", fails_at_the_fourth)
    with pytest.raises(RuntimeError, match="broken off"), removed_afterwards(untouched):
        insert(untouched, candidate_of(layout, "pissa"), layout, 1)
    assert_same(before, state_of(model))


def test_hooks_attributes_and_changed_weights_are_noticed() -> None:
    model = classifier_of("bert")
    untouched = Untouched(model)
    assert untouched.differences() == []
    handle = model.bert.register_forward_hook(lambda *_: None)
    assert any("_forward_hooks" in name for name in untouched.differences())
    handle.remove()
    model.bert.stray = 1
    assert any("stray" in name for name in untouched.differences())
    untouched.restore()
    assert untouched.differences() == []
    with torch.no_grad():
        model.classifier.bias[0] += 1e-7
    assert untouched.differences() == ["classifier.bias"]


def test_weights_in_another_order_are_noticed() -> None:
    model = classifier_of("bert")
    untouched = Untouched(model)
    weight = model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert untouched.differences() == ["bert.embeddings.word_embeddings.weight"]


def test_two_trials_on_one_model_equal_two_on_fresh_models() -> None:
    shared, losses = classifier_of("bert"), []
    layout = inspect_layout(shared)
    untouched = Untouched(shared)
    for variant in ("pissa", "dora"):
        with removed_afterwards(untouched):
            inserted = insert(untouched, candidate_of(layout, variant, dropout=0.2), layout, 5)
            train_two_steps(inserted.model)
            losses.append(inserted.model(**batch(9)).loss.item())
        fresh = Untouched(classifier_of("bert"))
        alone = insert(fresh, candidate_of(layout, variant, dropout=0.2), layout, 5)
        train_two_steps(alone.model)
        assert alone.model(**batch(9)).loss.item() == losses[-1]


def problems(settings: dict[str, Any] | None = None, **changes: Any) -> str:
    layout = inspect_layout(classifier_of("bert"))
    insertion = candidate_of(layout, **changes).insertions[0]
    if settings is not None:
        insertion = insertion.model_copy(update={"settings": settings})
    return "\n".join(str(problem) for problem in METHODS["lora"].problems(insertion, layout))


def test_an_insertion_that_fits_has_no_problem() -> None:
    assert problems() == ""
    assert problems(rank=16) == ""


def test_a_rank_above_the_smaller_side_of_a_module_is_named() -> None:
    found = problems(rank=17)
    assert "rank: 17 is larger than the smaller side of attention.key, which is 16; allowed: 1 to 16" in found


def test_layers_and_roles_that_the_model_lacks_are_named_together() -> None:
    found = problems(layers=(0, 3, 7), modules=("attention.qkv", "attention.query"))
    assert "layers: layer 3, 7 is not in the model, which has 3; allowed: 0 to 2" in found
    assert "modules: layer 0 has no attention.qkv; allowed: attention.query, attention.key" in found


def test_settings_out_of_range_missing_or_unknown_are_all_named() -> None:
    found = problems({"rank": 0, "dropout": 1.5, "depth": 3})
    for part in ("rank: 0 is not", "dropout: 1.5", "alpha_ratio: is missing", "depth: the method"):
        assert part in found


def test_a_candidate_that_does_not_fit_is_not_inserted() -> None:
    model = classifier_of("bert")
    layout = inspect_layout(model)
    with pytest.raises(UserError, match="rank: 99"):
        peft_config(candidate_of(layout, rank=99), layout)
    two = copy.deepcopy(candidate_of(layout))
    with pytest.raises(ValueError, match="2 insertions"):
        peft_config(two.model_copy(update={"insertions": two.insertions * 2}), layout)
