"""Bases in few bits, by what they hold and allocate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.predictor import StepPredictor
from autopeft.evaluate.memory.quantised import QuantisedLinear, hold_in_few_bits
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.quantisation import kept_whole, quantised_layout
from tests.unit.memory_models import candidate, model_of, setup_of


def held(load_in: str) -> tuple[MetaModel, int]:
    model = model_of("llama", dtype=torch.bfloat16, device="meta")
    expected = quantised_layout(inspect_layout(model), model, load_in).weights_bytes  # type: ignore[arg-type]
    hold_in_few_bits(model, load_in, kept_whole(model, ()))  # type: ignore[arg-type]
    return MetaModel(model, inspect_layout(model)), expected


def test_four_bits_take_half_a_byte_and_the_constants_of_double_quantisation() -> None:
    with torch.device("meta"):
        plain = nn.Linear(128, 256, dtype=torch.bfloat16)
    assert QuantisedLinear(plain, "4bit").weight.numel() == 128 * 256 * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    assert QuantisedLinear(plain, "8bit").weight.numel() == 128 * 256 + 4 * 256


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_the_base_weighs_what_its_layout_says_and_the_head_stays_whole(load_in: str) -> None:
    meta, expected = held(load_in)
    setup = setup_of(torch.bfloat16, target="cuda")
    found = StepPredictor(meta, setup).predict(candidate(meta.layout, "lora", (1, 3)))
    rounding = sum(4 * one.out_features + 1 for layer in meta.layout.layers for one in layer.modules)
    assert 0 <= found.weights_bytes - expected <= rounding
    plain = model_of("llama", dtype=torch.bfloat16, device="meta")
    whole = StepPredictor(MetaModel(plain, inspect_layout(plain)), setup).predict(
        candidate(meta.layout, "lora", (1, 3))
    )
    assert found.trainable_parameters == whole.trainable_parameters
    assert found.weights_bytes < whole.weights_bytes


def test_an_adapter_on_a_quantised_module_keeps_its_own_input_and_the_base_none() -> None:
    x = torch.empty(7, 128, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with torch.device("meta"):
        linear = QuantisedLinear(nn.Linear(128, 64, bias=False, dtype=torch.bfloat16), "4bit")
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        output = linear(x)
    assert [one.dtype for one in saved] == [torch.uint8]
    assert output.shape == (7, 64)
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
