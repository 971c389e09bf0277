"""Every method that says that its output can be damped: damped by 0 it is absent, and IST trains it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import UserError
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.methods import METHODS, Calibration
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.policies.damping import Damping
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from autopeft.spaces import bind
from autopeft.spaces.file import SearchSpaceFile
from tests.unit.evaluate_models import batch
from tests.unit.policy_runs import insertion_of, model_of, policy_of, training

SCALES = [name for name, method in METHODS.items() if method.facts.scales]
CHANGES = {"velora": {"num_groups": 4}}
"""Settings that fit so narrow a model."""


def test_lora_and_its_relatives_that_leave_the_base_alone_and_our_adapters_can_be_damped() -> None:
    assert set(SCALES) == {
        *("lora", "rslora", "dora", "mica", "bd-lora", "velora", "monteclora", "eva", "lora-plus", "lora-fa"),
        *("serial", "parallel"),
    }


def bound(method: str, layout: ModelLayout, policy: str) -> None:
    written = {
        "name": "mine",
        "summary": "s",
        "parameters": {"rate": {"kind": "choice", "values": [1e-3, 1e-2]}},
        "candidate": {"insertions": [{"method": method}], "policy": {"name": policy}, "learning_rate": "$rate"},
    }
    bind(SearchSpaceFile.model_validate(written), layout, METHODS, POLICIES, {})


def test_whatever_cannot_be_damped_is_refused_with_ist_when_a_space_is_bound_and_the_rest_is_taken() -> None:
    layout = inspect_layout(model_of("bert", 3, hidden_size=64, intermediate_size=128))
    taken, refused, misfits = [], [], []
    for method in METHODS:
        try:
            bound(method, layout, "all")
        except UserError:
            misfits.append(method)
            continue
        try:
            bound(method, layout, "ist")
            taken.append(method)
        except UserError as error:
            (problem,) = error.problems
            assert problem.found.startswith(f"{method} "), problem
            assert problem.allowed, problem
            assert ("no output scale" in problem.found) == ("dora" in problem.allowed.split(", ")), problem
            assert problem.next_step
            refused.append(method)
    # LoRA-FA has a scale, but its optimiser needs the gradients of every layer.
    assert set(taken) == set(SCALES) - set(misfits) - {"lora-fa"}
    assert {"prefix", "prompt-tuning", "ia3", "full", "adalora"} <= set(refused)
    assert len(misfits) < len(METHODS) / 5, misfits


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("method", SCALES)
def test_damped_by_0_the_method_is_absent_and_then_back_exactly(method: str, kind: str) -> None:
    model = model_of(kind, 3)
    layout, inputs = inspect_layout(model), batch(1)
    inputs.pop("labels")
    with torch.no_grad():
        absent = model(**inputs).logits
    insertion = insertion_of(layout, method, (0, 2))
    insertion = insertion.model_copy(update={"settings": {**insertion.settings, **CHANGES.get(method, {})}})
    assert METHODS[method].problems(insertion, layout) == []
    calibration = Calibration([batch(number) for number in range(4)], nullcontext)
    untouched = Untouched(model)
    candidate = Candidate(insertions=(insertion,), learning_rate=1e-3)
    with removed_afterwards(untouched):
        inserted = insert(untouched, candidate, layout, 0, calibration=calibration)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, part in inserted.base.named_parameters():
                # The magnitudes of DoRA stay active when its scale is 0, as in the released code of IST.
                if part.requires_grad and "magnitude" not in name and not name.startswith(layout.head_paths):
                    part += 0.1 * torch.randn(part.shape, generator=draw)
        inserted.model.eval()
        damping = Damping(inserted.base, layout)
        assert damping.layers == (0, 2)
        with torch.no_grad():
            there = inserted.model(**inputs).logits
            with damping.at((0, 2), 0.0):
                damped = inserted.model(**inputs).logits
            with damping.at((0, 2), 0.5):
                half = inserted.model(**inputs).logits
            again = inserted.model(**inputs).logits
        assert torch.allclose(damped, absent, atol=1e-6)
        assert not torch.allclose(there, absent, atol=1e-4)
        assert not torch.allclose(half, there, atol=1e-5)
        assert torch.equal(again, there)


@pytest.mark.parametrize("method", ["dora", "lora-plus", "monteclora"])
def test_ist_trains_methods_with_magnitudes_optimisers_or_losses_of_their_own(method: str) -> None:
    policy = policy_of("ist", interval=2, trained=0.5)
    with training("bert", policy, method=method, steps=5) as (run, _):
        seen = set()
        for _ in run.run():
            seen |= run.gates.open
        assert len(run.layer_scores()) == 2
        assert len(seen) > 2
