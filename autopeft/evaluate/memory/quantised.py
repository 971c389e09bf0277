"""Linear modules of bitsandbytes by what they hold and allocate, on `meta`; bitsandbytes itself needs a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from autopeft.evaluate.quantisation import BITS_PER_WEIGHT

_COMPUTES_IN = torch.bfloat16
"""`bnb_4bit_compute_dtype`, as `quantisation` sets it."""


class _InFourBits(torch.autograd.Function):
    """NF4 (QLoRA, Dettmers et al., NeurIPS 2023, eq. 5): unpacks the weights for each product and keeps no input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, outputs: int) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.inputs = x.shape[-1]
        weight = x.new_empty(outputs, x.shape[-1])
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        weight = gradient.new_empty(gradient.shape[-1], ctx.inputs)
        return gradient @ weight, None, None


class _InEightBits(torch.autograd.Function):
    """LLM.int8() (Dettmers et al., NeurIPS 2022): the input in float16 and in 8 bits, the product in 32.

    bitsandbytes 0.50.2 has its input at hand until the graph is gone (`ctx.tensors`), though no gradient needs it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, outputs: int) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.inputs = x.shape[-1]
        ctx.kept = x if ctx.needs_input_grad[0] else None
        short = x.to(torch.float16)
        rounded = torch.empty_like(short, dtype=torch.int8)
        product = x.new_empty(*x.shape[:-1], outputs, dtype=torch.int32)
        output = torch.empty_like(product, dtype=torch.float16)
        del short, rounded, product
        return output.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        weight = gradient.new_empty(gradient.shape[-1], ctx.inputs)
        return gradient @ weight, None, None


class QuantisedLinear(nn.Linear):
    """A linear module whose weight is held in few bits; its output has its input's dtype, also under autocast.

    That is how bitsandbytes has it: a normalisation in float32 before it means outputs in float32, which are kept.
    """

    def __init__(self, plain: nn.Linear, load_in: Literal["4bit", "8bit"]) -> None:
        with torch.device("meta"):
            super().__init__(plain.in_features, plain.out_features, plain.bias is not None)
        size = math.ceil(plain.in_features * plain.out_features * BITS_PER_WEIGHT[load_in] / 8)
        if load_in == "8bit":
            size += 4 * plain.out_features  # one float32 scale per output
        packed = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = plain.bias
        self._product = _InFourBits if load_in == "4bit" else _InEightBits

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in_features] -> [..., out_features]`."""
        given = input.to(_COMPUTES_IN) if self._product is _InFourBits else input
        found: torch.Tensor = self._product.apply(given, self.weight, self.out_features)
        found = found if self.bias is None else found + self.bias.to(found.dtype)
        return found.to(input.dtype)


def in_few_bits(model: nn.Module) -> bool:
    """Whether some weights of the model are held so."""
    return any(isinstance(module, QuantisedLinear) for module in model.modules())


def hold_in_few_bits(model: Any, load_in: Literal["4bit", "8bit"], whole: Sequence[str]) -> None:
    """Replace a model's linear modules but those named in `whole`, and what is in them."""
    for path, module in list(model.named_modules()):
        kept = any(path == one or path.startswith(f"{one}.") for one in whole)
        if type(module) is nn.Linear and not kept:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, QuantisedLinear(module, load_in))
