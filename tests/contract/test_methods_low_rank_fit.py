"""Low-rank and shared-vector methods on every architecture: what is allowed trains, what is refused fails in peft."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lokr.layer import factorization

from autopeft.domain.candidate import Insertion, Setting
from autopeft.domain.layout import Role
from autopeft.evaluate.insertion import Untouched, removed_afterwards
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import (
    METHODS,
    PeftMethod,
    frozen_bases,
    low_rank,
    products,
    shards,
    shared_vectors,
    subspaces,
)
from autopeft.evaluate.methods.products import factors
from tests.contract.method_runs import Base, inserted_in
from tests.unit.evaluate_models import CONFIGS, batch, classifier_of

MINE = tuple(
    method.name
    for family in (low_rank, products, shards, frozen_bases, shared_vectors, subspaces)
    for method in family.METHODS
)
NARROW: dict[str, Setting] = {
    "rank": 4, "vector_length": 4, "num_vectors": 8, "theta_d_length": 64, "u": 4, "mini_r": 4,
    "asa_target_subspaces": 4,
}  # fmt: skip
"""What fits models 16 wide instead of the defaults."""


@cache
def classifier(kind: str) -> Base:
    """One base model per type for all tests: what is put in is taken out again."""
    model = classifier_of(kind).requires_grad_(False)
    return Base(kind, model, inspect_layout(model), Untouched(model))


def insertion_of(
    name: str, base: Base, roles: tuple[str, ...] = (), layers: tuple[int, ...] = (0, 1), **settings: Setting
) -> Insertion:
    """In all linear modules of two layers where nothing else is said."""
    defaults = METHODS[name].facts.defaults
    small = {key: NARROW.get(key, value) for key, value in defaults.items()}
    modules = roles or tuple(sorted(str(role) for role in base.layout.roles()))
    return Insertion(method=name, layers=layers, modules=modules, settings={**small, **settings})


def forced_into(base: Base, insertion: Insertion) -> Any:
    """What peft makes of an insertion that is not asked whether it fits, after one pass."""
    method = METHODS[insertion.method]
    assert isinstance(method, PeftMethod)
    with removed_afterwards(base.untouched), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(base.model, method.config(insertion, base.layout, 1))(**batch())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", MINE)
def test_what_fits_an_architecture_trains_and_what_is_refused_fails_in_peft(name: str, kind: str) -> None:
    base, method = classifier(kind), METHODS[name]
    insertion = insertion_of(name, base)
    problems = method.problems(insertion, base.layout)
    if problems:
        assert kind == "gpt2"
        assert [problem.where for problem in problems] == ["modules"]
        with pytest.raises((TypeError, ValueError, AttributeError, NotImplementedError)):
            forced_into(base, insertion)
        return
    with inserted_in(base, insertion) as inserted:
        assert sorted(inserted.module_names) == sorted(base.layout.paths(insertion.layers, insertion.modules))
        found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
        assert found == method.trainable(insertion, base.layout)
        optimizer = inserted.optimizer(1e-2, 0.0)
        inserted.model.train()
        loss = inserted.model(**batch()).loss
        loss.backward()
        assert any(part.grad is not None and part.grad.any() for part in inserted.trainable())
        optimizer.step()
        with torch.no_grad():
            assert torch.isfinite(inserted.model(**batch()).loss)


COUNTS: tuple[tuple[str, dict[str, Setting]], ...] = (
    ("loha", {"rank": 3}),
    ("lokr", {"rank": 1, "decompose_factor": 2}),
    ("lokr", {"rank": 2, "decompose_factor": 8}),
    ("lokr", {"rank": 1, "decompose_factor": 16}),
    ("lokr", {"rank": 16}),
    ("gralora", {"rank": 8, "gralora_k": 8}),
    ("glora", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
    ("glora", {"config_A_B": "constant", "config_C": "none", "config_D_E": "none"}),
    ("glora", {"rank": 2, "config_C": "lora", "config_D_E": "constant"}),
    ("peanut", {"rank": 3, "depth": 2, "act_fn": "tanh"}),
    ("miss", {"rank": 5, "dropout": 0.1}),
    ("miss-bat", {"rank": 8}),
    ("miss-mini", {"rank": 5, "mini_r": 8}),
    ("vera", {"rank": 100}),
    ("pvera", {"rank": 100}),
    ("randlora", {"rank": 5}),
    ("randlora", {"rank": 16, "sparse": True}),
    ("vblora", {"vector_length": 8, "num_vectors": 5, "topk": 3}),
    ("unilora", {"theta_d_length": 100, "rank": 1}),
    ("tinylora", {"weight_tying": 0.3}),
    ("tinylora", {"weight_tying": 0.5}),
    ("tinylora", {"weight_tying": 0.8, "u": 3}),
    ("tinylora", {"weight_tying": 1.0}),
    ("lily", {"stride_A": 2, "num_B": 3}),
    ("lily", {"stride_A": 9}),
    ("deft", {"decomposition_method": "qr"}),
    ("para", {"decomposition_method": "qr"}),
    ("frod", {"sparse_rate": 0.0}),
    ("frod", {"sparse_rate": 1e-4}),
    ("frod", {"sparse_rate": 1.0}),
    ("adamss", {"num_subspaces": 16, "rank": 16}),
    ("adamss", {"num_subspaces": 1}),
)


@pytest.mark.parametrize(("name", "settings"), COUNTS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_closed_form_holds_for_every_setting_and_for_modules_that_are_no_squares(
    kind: str, name: str, settings: dict[str, Setting]
) -> None:
    base, method = classifier(kind), METHODS[name]
    for roles in ((Role.QUERY.value, Role.VALUE.value), (Role.VALUE.value, Role.FFN_IN.value, Role.FFN_OUT.value)):
        insertion = insertion_of(name, base, tuple(sorted(roles)), (0, 2), **settings)
        if method.problems(insertion, base.layout):
            assert kind == "llama"  # its keys and values are 8 wide
            continue
        with inserted_in(base, insertion) as inserted:
            found = sum(part.numel() for part in inserted.trainable()) - inserted.head_parameters()
            assert found == method.trainable(insertion, base.layout), insertion
            assert torch.isfinite(inserted.model(**batch()).loss)


REFUSED: tuple[tuple[str, dict[str, Setting], str], ...] = (
    ("gralora", {"gralora_k": 16, "rank": 16}, "gralora_k"),
    ("gralora", {"gralora_k": 4, "rank": 6}, "rank"),
    ("miss", {"rank": 24}, "rank"),
    ("miss-bat", {"rank": 3}, "rank"),
    ("miss-mini", {"mini_r": 5}, "mini_r"),
    ("vblora", {"vector_length": 16}, "vector_length"),
    ("vblora", {"num_vectors": 4, "topk": 5}, "topk"),
    ("adamss", {"num_subspaces": 30}, "num_subspaces"),
)
"""On BERT, 16 wide with an inner width of 24. All but the last fail in peft, which takes fewer clusters there."""


@pytest.mark.parametrize(("name", "settings", "where"), REFUSED)
def test_what_a_model_cannot_take_is_named_before_it_fails_in_peft(
    name: str, settings: dict[str, Setting], where: str
) -> None:
    base = classifier("bert")
    insertion = insertion_of(name, base, **settings)
    assert [problem.where for problem in METHODS[name].problems(insertion, base.layout)] == [where]
    forced_into(base, insertion_of(name, base))  # what fits does not fail
    if name != "adamss":
        with pytest.raises((ValueError, RuntimeError)):
            forced_into(base, insertion)


@pytest.mark.parametrize("name", ["loha", "lokr", "hira", "delora", "gralora", "glora", "peanut", "randlora", "deft"])
def test_a_rank_above_a_side_is_refused(name: str) -> None:
    base = classifier("bert")
    problems = METHODS[name].problems(insertion_of(name, base, rank=18), base.layout)
    assert [problem.where for problem in problems] == ["rank"]
    assert "16" in problems[0].allowed


def test_more_shared_numbers_than_places_for_them_are_refused() -> None:
    base = classifier("bert")
    insertion = insertion_of("unilora", base, ("attention.query",), (0,), theta_d_length=129)
    problems = METHODS["unilora"].problems(insertion, base.layout)
    assert [problem.where for problem in problems] == ["theta_d_length"]
    assert problems[0].allowed == "1 to 128"  # rank 4 times both sides of 16


def test_widths_are_split_as_peft_splits_them() -> None:
    for width in range(1, 400):
        for factor in (-1, 2, 4, 8, 16, 32):
            assert factors(width, factor) == factorization(width, factor), (width, factor)
