"""Relatives of LoRA that differ while they are trained: learning rates, frozen factors, added losses, falling ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from autopeft.domain.candidate import Insertion
from autopeft.evaluate.artefact import load_adapter, save_adapter
from autopeft.evaluate.methods import METHODS
from tests.contract.method_runs import (
    Base,
    base_of,
    batches_of,
    inserted_in,
    logits_of,
    task_loss,
    train,
    trained_tensors,
)


def insertion_of(base: Base, method: str, **settings: Any) -> Insertion:
    found = METHODS[method]
    return Insertion(
        method=method,
        layers=(0, 1, 2),
        modules=("attention.query", "ffn.out"),
        settings={**found.facts.defaults, **settings},
    )


def training_loss(inserted: Any) -> float:
    """In training mode where peft's modules are, without the dropout of the base."""
    inserted.model.eval()
    inserted.model.base_model.training = True
    for module in inserted.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.train()
    return sum(inserted.model(**batch).loss.item() for batch in batches_of("bert")) / 2


def test_lora_plus_lets_b_learn_as_many_times_faster_as_it_is_told() -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base, "lora-plus", lr_ratio=8.0)) as inserted:
        names = {id(part): name for name, part in inserted.model.named_parameters()}
        optimizer = inserted.optimizer(1e-3, 0.01)
        rates = {names[id(part)]: group["lr"] for group in optimizer.param_groups for part in group["params"]}
        assert {name for name, part in inserted.model.named_parameters() if part.requires_grad} == rates.keys()
        assert {rate for name, rate in rates.items() if "lora_A" in name} == {1e-3}
        assert {rate for name, rate in rates.items() if "lora_B" in name} == {8e-3}
        train(base, inserted, 1, 1e-3)
        moved = max(part.abs().max().item() for name, part in inserted.model.named_parameters() if "lora_B" in name)
        assert moved == pytest.approx(8e-3, rel=1e-2)  # Adam's first step is as long as its learning rate


def test_lora_fa_never_moves_a() -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base, "lora-fa")) as inserted:
        before = {name: part.detach().clone() for name, part in inserted.model.named_parameters()}
        assert not any("lora_A" in name for name in trained_tensors(inserted))
        train(base, inserted, 3, 1e-2)
        for name, part in inserted.model.named_parameters():
            if "lora_A" in name:
                assert torch.equal(part, before[name])
            elif "lora_B" in name:
                assert not torch.equal(part, before[name])


def test_kasa_is_trained_with_its_two_regularisers() -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base, "kasa", rank=4)) as inserted:
        train(base, inserted, 3, 1e-2)
        expected = 0.0
        for path in inserted.module_names:
            module = base.model.get_submodule(path)
            first, second = module.lora_A["default"].weight, module.lora_B["default"].weight
            eye = torch.eye(4)
            uneven = torch.linalg.norm(first @ first.T - eye) + torch.linalg.norm(second.T @ second - eye)
            expected += (1e-4 * module.lora_diag["default"].square().sum() + 1e-3 * uneven).item()
        assert training_loss(inserted) - task_loss(inserted.model, "bert") == pytest.approx(expected, abs=1e-5)


def test_monteclora_samples_in_training_only_and_is_held_to_its_prior() -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base, "monteclora")) as inserted:
        added = training_loss(inserted) - task_loss(inserted.model, "bert")  # B is zero: samples change no output yet
        assert added > 0
        train(base, inserted, 3, 1e-2)
        assert training_loss(inserted) != training_loss(inserted)
        assert torch.equal(logits_of(inserted.model, "bert"), logits_of(inserted.model, "bert"))


def budget(step: int, steps: int, first: int, last: int) -> int:
    """Eq. 12 of AdaLoRA: singular values that are kept after a step; its cubic reaches `last` where the end begins."""
    warm_up, end = steps // 10, 3 * steps // 10
    if step <= warm_up:
        return first
    if step >= steps - end:
        return last
    progress = (step - warm_up) / (steps - warm_up - end)
    return math.floor(last + (first - last) * (1 - progress) ** 3)


@pytest.mark.parametrize("steps", [20, 7])
def test_adalora_keeps_as_many_singular_values_as_its_budget_says(steps: int, tmp_path: Path) -> None:
    base, rank, target = base_of("bert"), 6, 2
    kept: list[int] = []
    with inserted_in(base, insertion_of(base, "adalora", rank=rank, target_share=target / rank), steps) as inserted:
        values = [base.model.get_submodule(path).lora_E["default"] for path in inserted.module_names]
        told = inserted.after_step

        def counted(step: int) -> None:
            told(step)
            kept.append(sum(int((part != 0).sum()) for part in values))

        inserted.after_step = counted
        train(base, inserted, steps, 5e-2)
        live = logits_of(inserted.model, "bert")
        save_adapter(inserted, tmp_path / "adapter")
    modules = len(values)
    assert kept == [budget(step, steps, rank * modules, target * modules) for step in range(1, steps + 1)]
    pattern = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(sum(one) for one in pattern.values()) == target * modules
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(part.shape[0] for name, part in saved.items() if "lora_A" in name) == target * modules
    torch.testing.assert_close(logits_of(load_adapter(base_of("bert").model, tmp_path / "adapter"), "bert"), live)


def test_adalora_reloads_where_a_module_lost_every_singular_value(tmp_path: Path) -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base, "adalora", rank=6, target_share=0.05), 12) as inserted:
        train(base, inserted, 12, 5e-2)
        values = [base.model.get_submodule(path).lora_E["default"] for path in inserted.module_names]
        assert any(not part.any() for part in values), "choose another seed: every module kept one"
        live = logits_of(inserted.model, "bert")
        save_adapter(inserted, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(load_adapter(base_of("bert").model, tmp_path / "adapter"), "bert"), live)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_adalora_can_be_trained_for_very_few_steps(steps: int) -> None:
    base = base_of("bert")
    with inserted_in(base, insertion_of(base, "adalora", rank=2), steps) as inserted:
        assert len(train(base, inserted, steps, 1e-2)) == steps
