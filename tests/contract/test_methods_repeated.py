"""One method in many places of a model, once or several times, acts everywhere and goes without a trace."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.domain.candidate import Candidate
from autopeft.evaluate.artefact import save_adapter
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.loading import load_adapter
from autopeft.evaluate.methods import METHODS, Calibration, PeftMethod
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from tests.contract.method_runs import fitting
from tests.unit.evaluate_models import batch, classifier_of, config_of

NAMES = [name for name, one in METHODS.items() if isinstance(one, PeftMethod) and not one.facts.alone]
SHARED = {"frod", "lily", "pvera", "randlora", "tinylora", "unilora", "vblora", "vera"}
"""Methods that share tensors among modules, which a second insertion makes anew."""


def model_of() -> Any:
    torch.manual_seed(0)
    changes = {"hidden_size": 64, "intermediate_size": 96}
    return type(classifier_of("bert"))(config_of("bert", **changes)).eval().requires_grad_(False)


def trained(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        model.train()
        model(**batch(seed)).loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_insertion_of_a_method_is_trained(name: str) -> None:
    model = model_of()
    layout, untouched = inspect_layout(model), Untouched(model)
    parts = tuple(fitting(name, layout, layers) for layers in ((0,), (1,), (2,)))
    inserted = insert(untouched, Candidate(insertions=parts, learning_rate=1e-2), layout, 0)
    first = {key: part.detach().clone() for key, part in model.named_parameters() if part.requires_grad}
    trained(inserted.model)
    named = {key: part for key, part in model.named_parameters() if key in first and part.numel()}
    assert [key for key, part in named.items() if part.grad is None] == []
    moved = [key for key, part in named.items() if not torch.equal(part, first[key])]
    for index in range(3):
        assert any(f".i{index}" in key for key in moved), f"insertion {index} stayed as it was"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHARED])
def test_insertions_into_parts_of_the_layers_compute_what_one_into_all_does(name: str) -> None:
    one, parted = model_of(), model_of()
    layout = inspect_layout(one)
    whole = Candidate(insertions=(fitting(name, layout, (0, 1, 2)),), learning_rate=1e-2)
    parts = Candidate(insertions=tuple(fitting(name, layout, layers) for layers in ((0,), (1, 2))), learning_rate=1e-2)
    alone = insert(Untouched(one), whole, layout, 0)
    trained(alone.model)
    mixed = insert(Untouched(parted), parts, layout, 0)
    tensors = {**dict(alone.model.named_parameters()), **dict(alone.model.named_buffers())}
    known = {key.removeprefix("base_model.model.").replace("modules_to_save.default.", ""): part
             for key, part in tensors.items()}  # fmt: skip
    own = {**dict(parted.named_parameters()), **dict(parted.named_buffers())}
    assert mixed.composed is not None
    with torch.no_grad():
        for key in mixed.composed.names:
            own[key].copy_(known[re.sub(r"(?<=\.)i[01](?=\.|$)", "default", key)])
        for seed in range(2):
            expected = alone.model(**batch(seed)).logits
            torch.testing.assert_close(mixed.model(**batch(seed)).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if isinstance(one, PeftMethod)])
def test_loading_an_adapter_with_many_targets_leaves_the_base_as_it_was(name: str, tmp_path: Path) -> None:
    # From 20 targets on, peft writes their common endings in place of their paths.
    torch.manual_seed(0)
    config = config_of("bert", hidden_size=64, intermediate_size=96, num_hidden_layers=11)
    model = type(classifier_of("bert"))(config).eval().requires_grad_(False)
    layout, untouched = inspect_layout(model), Untouched(model)
    method = METHODS[name]
    if layout.task not in method.facts.tasks:
        pytest.skip("not for this task")
    insertion = fitting(name, layout, tuple(range(11)))
    calibration = Calibration([batch(seed) for seed in range(8)], nullcontext)
    with removed_afterwards(untouched):
        candidate = Candidate(insertions=(insertion,), learning_rate=1e-2)
        inserted = insert(untouched, candidate, layout, 0, steps=4, calibration=calibration)
        save_adapter(inserted, tmp_path / "adapter")
        del inserted
    with removed_afterwards(untouched):
        load_adapter(model, tmp_path / "adapter", untouched)
    assert untouched.differences() == []
