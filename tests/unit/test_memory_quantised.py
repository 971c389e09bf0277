"""Bases in few bits, by what they hold and allocate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from autopeft.evaluate.arithmetic import emulated_autocast
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.bare import in_few_bits as base_in_few_bits
from autopeft.evaluate.memory.predictor import StepPredictor
from autopeft.evaluate.memory.quantised import QuantisedLinear, hold_in_few_bits, in_few_bits
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.quantisation import kept_whole, quantised_layout
from tests.unit.memory_models import candidate, model_of, setup_of

Bits = Literal["4bit", "8bit"]


def held(load_in: Bits) -> tuple[MetaModel, int]:
    model = model_of("llama", dtype=torch.bfloat16, device="meta")
    expected = quantised_layout(inspect_layout(model), model, load_in).weights_bytes
    hold_in_few_bits(model, load_in, kept_whole(model, ()))
    return MetaModel(model, inspect_layout(model)), expected


def test_four_bits_take_half_a_byte_and_the_constants_of_double_quantisation() -> None:
    with torch.device("meta"):
        plain = nn.Linear(128, 256, dtype=torch.bfloat16)
    assert QuantisedLinear(plain, "4bit").weight.numel() == 128 * 256 * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    assert QuantisedLinear(plain, "8bit").weight.numel() == 128 * 256 + 4 * 256


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_the_base_weighs_what_its_layout_says_and_the_head_stays_whole(load_in: Bits) -> None:
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


def linear_in(load_in: Bits) -> QuantisedLinear:
    with torch.device("meta"):
        return QuantisedLinear(nn.Linear(128, 64, dtype=torch.bfloat16), load_in)


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_has_its_input_s_dtype_whatever_autocast_computes_in(load_in: Bits, dtype: torch.dtype) -> None:
    x = torch.empty(2, 7, 128, device="meta", dtype=dtype)
    with emulated_autocast(torch.bfloat16):
        assert linear_in(load_in)(x).dtype == dtype


def test_bitsandbytes_itself_returns_that_dtype_and_has_the_inputs_of_eight_bits_at_hand() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState

    x = torch.randn(2, 7, 128, requires_grad=True) * 1.0
    four = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    four.weight = bitsandbytes.nn.Params4bit(torch.randn(64, 128), requires_grad=False, quant_type="nf4").to("cpu")
    assert four(x).dtype == torch.float32
    state = MatmulLtState()
    state.threshold, state.has_fp16_weights = 6.0, False
    state.CB, state.SCB, _ = bitsandbytes.functional.int8_vectorwise_quant(torch.randn(64, 128).half())
    output = MatMul8bitLt.apply(x, state.CB, None, None, state)
    assert output.dtype == torch.float32
    held = [one.untyped_storage().data_ptr() for one in output.grad_fn.tensors if one is not None]
    assert x.untyped_storage().data_ptr() in held
    emulated: Any = linear_in("8bit")._product.apply(x.to("meta"), linear_in("8bit").weight, 64)
    assert emulated.grad_fn.kept is not None


@pytest.mark.parametrize("load_in", ["4bit", "8bit", None])
def test_a_layout_says_whether_its_base_is_in_few_bits(load_in: str | None) -> None:
    model = model_of("llama", dtype=torch.bfloat16, device="meta")
    base: Any = SimpleNamespace(model=model, new_parameters=())
    spec: Any = SimpleNamespace(load_in=load_in)
    assert base_in_few_bits(base, spec)[1].quantised == (load_in is not None)
    assert in_few_bits(model) == (load_in is not None)
