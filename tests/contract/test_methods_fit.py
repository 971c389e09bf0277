"""On ten architectures a method either trains, or says before that it cannot and peft indeed cannot."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peft import get_peft_model

from autopeft.domain.candidate import Candidate, Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.heads import head_arguments
from autopeft.evaluate.insertion import Untouched, insert, removed_afterwards
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS, PeftMethod
from tests.contract.method_runs import base_of
from tests.unit.evaluate_models import CONFIGS, classifier_of

SMALL: dict[str, dict[str, Any]] = {
    "oft": {"oft_block_size": 4},
    "boft": {"boft_block_size": 4},
    "hra": {"rank": 4},
    "psoft": {"rank": 4},
    "road": {"variant": "road_2"},
    "osf": {"effective_rank": 0.75},
    "fourierft": {"n_frequency": 40},
    "waveft": {"n_frequency": 40},
    "c3a": {"block_size": 4},
    "shira": {"rank": 2},
    "supertuning": {"sparsity": 0.9},
    "ia3": {},
    "beft": {},
    "ln-tuning": {},
}
"""Settings for models 16 wide with heads of 4."""
CLASSIFIERS = [(kind, False) for kind in CONFIGS]
GENERATORS = [(kind, True) for kind in ("gpt2", "opt", "gemma")]


@cache
def untouched(kind: str, language: bool) -> tuple[Untouched, ModelLayout]:
    if language:
        base = base_of(kind)
        return base.untouched, base.layout
    model = classifier_of(kind).requires_grad_(False)
    return Untouched(model), inspect_layout(model)


def inputs(language: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    labels = ids if language else torch.tensor([0, 1, 1])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def insertion_of(name: str, layout: ModelLayout) -> Insertion:
    """In all modules of all layers, so that whatever a method cannot take is among them."""
    method = METHODS[name]
    every = tuple(sorted(role.value for role in layout.roles())) if method.facts.takes_modules else ()
    layers = tuple(range(len(layout.layers)))
    return Insertion(method=name, layers=layers, modules=every, settings={**method.facts.defaults, **SMALL[name]})


@pytest.mark.parametrize(("kind", "language"), CLASSIFIERS + GENERATORS)
@pytest.mark.parametrize("name", list(SMALL))
def test_a_method_trains_or_refuses_and_counts_right(name: str, kind: str, language: bool) -> None:
    base, layout = untouched(kind, language)
    method = METHODS[name]
    assert isinstance(method, PeftMethod)
    insertion, batch = insertion_of(name, layout), inputs(language)
    with removed_afterwards(base):
        if method.problems(insertion, layout):
            assert _fails(method, insertion, layout, base.model), "refused, but peft takes it"
            return
        with torch.no_grad():
            before = base.model(**batch).logits
        inserted = insert(base, Candidate(insertions=(insertion,), learning_rate=1e-2), layout, 1)
        found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
        assert found == method.trainable(insertion, layout)
        optimizer = inserted.optimizer(1e-2, 0.0)
        inserted.model(**batch).loss.backward()
        assert all(part.grad is not None for part in inserted.trainable())
        optimizer.step()
        with torch.no_grad():
            live = inserted.model(**batch).logits
            assert torch.isfinite(live).all()
            assert not torch.allclose(live, before, atol=1e-4), "a step changed nothing"
            if method.facts.merges:
                assert torch.allclose(inserted.merged()(**batch).logits, live, atol=1e-4)


def _fails(method: PeftMethod, insertion: Insertion, layout: ModelLayout, model: Any) -> bool:
    """Whether peft raises, or passes over what it was told to take."""
    config = method.config(insertion, layout, 1)
    for key, value in head_arguments(layout).items():
        setattr(config, key, value)
    try:
        peft_model = get_peft_model(model, config)
    except (TypeError, ValueError):
        return True
    return not any(part.requires_grad for key, part in peft_model.named_parameters() if "modules_to_save" not in key)


@pytest.mark.parametrize(
    ("name", "settings", "where"),
    [
        ("oft", {"oft_block_size": 5}, "oft_block_size"),
        ("boft", {"boft_block_size": 3}, "boft_block_size"),
        ("hra", {"rank": 3}, "rank"),
        ("hra", {"rank": 34}, "rank"),
        ("psoft", {"rank": 17}, "rank"),
        ("osf", {"effective_rank": 0.01}, "effective_rank"),
        ("osf", {"effective_rank": 0.999}, ""),
        ("fourierft", {"n_frequency": 500}, "n_frequency"),
        ("waveft", {"n_frequency": 500}, "n_frequency"),
        ("c3a", {"block_size": 5}, "block_size"),
        ("shira", {"rank": 20}, "rank"),
        ("supertuning", {"sparsity": 0.9999}, "sparsity"),
    ],
)
def test_a_setting_that_the_widths_do_not_allow_is_refused_with_what_they_do(
    name: str, settings: dict[str, Any], where: str
) -> None:
    _, layout = untouched("llama", False)
    insertion = insertion_of(name, layout)
    changed = insertion.model_copy(update={"settings": {**insertion.settings, **settings}})
    found = METHODS[name].problems(changed, layout)
    if not where:
        assert found == []  # 15 of 16 directions stay, one is trained
        return
    assert [one.where for one in found] == [where]
    assert found[0].allowed
